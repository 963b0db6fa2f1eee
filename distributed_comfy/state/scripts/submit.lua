-- A job enters the table.  Idempotent: a known job id changes nothing.
-- ARGV  job, record, submitter, priority, sig, last_sig or '', cap bytes, aging ms, ttl s, last index or '', host,
--       owner, owner lease ms (or '', how long after its end the results of a job without owner are kept),
--       title, requirement, last requirement, count, then `count` times: index, packed spec;  then pairs: prompt hash, prompt.
-- Writes job, jobs, active, spec, prompts, pending | item (last stage: blocked), owner, submitter, sigs, the index.
-- Gives  {'ok' | 'new' (a signature has not been matched with the capabilities yet), worker...}
local id = ARGV[1]
if call('EXISTS', K.job(id)) == 1 then return {unmatched(job_read(id)) and 'new' or 'ok'} end
local seq = call('INCR', K.sequence())
local count, last = tonumber(ARGV[17]), ARGV[10]
call('HSET', K.job(id), 'record', ARGV[2], 'submitter', ARGV[3], 'base', ARGV[4], 'level', ARGV[4], 'sig', ARGV[5], 'last_sig', ARGV[6],
  'cap', ARGV[7], 'aging_ms', ARGV[8], 'ttl_s', ARGV[9], 'last', last, 'host', ARGV[11], 'title', ARGV[14], 'seq', seq, 'total', count,
  'state', 'active', 'created_ms', NOW, 'place', '')
call('ZADD', K.jobs(), seq, id)
call('SADD', K.active(), id)
if ARGV[12] == '' then call('HSET', K.job(id), 'keep_ms', ARGV[13]) else call('SET', K.owner(id), ARGV[12], 'PX', ARGV[13]) end
submitter_enter(ARGV[3])
local at = 18
for _ = 1, count do
  local index, spec = ARGV[at], ARGV[at + 1]
  at = at + 2
  call('HSET', K.spec(id), index, spec)
  if index == last then item_write(id, index, {s = 'blocked', c = '', w = '', a = {}}) else call('RPUSH', K.pending(id), index) end
end
while ARGV[at] do
  call('HSET', K.prompts(id), ARGV[at], ARGV[at + 1])
  at = at + 2
end
local job = job_read(id)
use_signatures(job, ARGV[15], ARGV[16])
local out = {unmatched(job) and 'new' or 'ok'}
offer(job, out)
return out
