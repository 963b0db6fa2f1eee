-- A job enters the table.  Idempotent: a known job id changes nothing.
-- ARGV  job, record, submitter, priority, sig, last_sig or '', cap bytes, aging ms, ttl s, last index or '', host,
--       owner, owner lease ms (or '', how long after its end the results of a job without owner are kept),
--       title, requirement, last requirement, kind of all items but the last stage, which of them may be missing in the end ('', 'all',
--       'others' than item 0), count, finished count, then `count` times: index, packed spec;  then for each item that an earlier job
--       finished and the owner has: index, claim id, worker, result, bytes, meta;  then pairs: prompt hash, prompt.
-- Writes job, jobs, active, spec, prompts, pending | item (last stage: blocked; finished: done), owner, submitter, sigs, the index,
--        result and meta of finished items.
-- Gives  {'ok' | 'new' (a signature has not been matched with the capabilities yet), worker...}
local id = ARGV[1]
if call('EXISTS', K.job(id)) == 1 then return {unmatched(job_read(id)) and 'new' or 'ok'} end
local seq = call('INCR', K.sequence())
local count, finished, last = tonumber(ARGV[19]), tonumber(ARGV[20]), ARGV[10]
local first_specs = 21
local first_finished = first_specs + 2 * count
local done, largest = {}, 0
for at = first_finished, first_finished + 6 * finished - 1, 6 do
  local index, claim, worker, bytes = ARGV[at], ARGV[at + 1], ARGV[at + 2], num(ARGV[at + 4])
  done[index], largest = true, math.max(largest, bytes)
  item_write(id, index, {s = 'done', c = claim, w = worker, a = {}, b = bytes, f = 1})
  call('HSET', K.result(id), index, ARGV[at + 3])
  publish_meta(id, index, ARGV[at + 5], ARGV[9])
end
call('HSET', K.job(id), 'record', ARGV[2], 'submitter', ARGV[3], 'base', ARGV[4], 'level', ARGV[4], 'sig', ARGV[5], 'last_sig', ARGV[6],
  'cap', ARGV[7], 'aging_ms', ARGV[8], 'ttl_s', ARGV[9], 'last', last, 'host', ARGV[11], 'title', ARGV[14], 'seq', seq, 'total', count,
  'state', 'active', 'created_ms', NOW, 'place', '', 'done', finished, 'largest', largest,
  'kind', ARGV[17], 'spare', ARGV[18])
call('ZADD', K.jobs(), seq, id)
call('SADD', K.active(), id)
if ARGV[12] == '' then call('HSET', K.job(id), 'keep_ms', ARGV[13]) else call('SET', K.owner(id), ARGV[12], 'PX', ARGV[13]) end
submitter_enter(ARGV[3])
for at = first_specs, first_finished - 1, 2 do
  local index, spec = ARGV[at], ARGV[at + 1]
  call('HSET', K.spec(id), index, spec)
  if not done[index] then
    if index == last then item_write(id, index, {s = 'blocked', c = '', w = '', a = {}}) else call('RPUSH', K.pending(id), index) end
  end
end
local at = first_finished + 6 * finished
while ARGV[at] do
  call('HSET', K.prompts(id), ARGV[at], ARGV[at + 1])
  at = at + 2
end
local job = job_read(id)
use_signatures(job, ARGV[15], ARGV[16])
local out = {unmatched(job) and 'new' or 'ok'}
if finished == count then end_job(job, 'done', '', out) else offer(job, out) end
return out
