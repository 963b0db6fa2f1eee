-- A job enters the table.  Idempotent: a known job id changes nothing.
-- ARGV  job, record, submitter, priority, sig, last_sig or '', cap bytes, aging ms, ttl s, last index or '', host,
--       owner, owner lease ms (or '', how long after its end the results of a job without owner are kept),
--       title, requirement, last requirement, kind of the generated items, which of them may be missing in the end ('', 'all', 'others'
--       than item 0), '1' where `extend` will add items, index of the item that prepares for them or '', what the submitter's ComfyUI
--       answers for ('', 'checked', 'runs'), count, blocked count, finished count, then `count` times: index, packed spec;  then each
--       index that is blocked at first;  then for each item that an earlier job finished and the owner has: index, claim id, worker,
--       result, bytes, meta;  then pairs: prompt hash, prompt.
-- Writes job, jobs, active, spec, prompts, pending | item (blocked; finished: done), owner, submitter, sigs, the index, result and meta of
--        finished items.
-- Gives  {'ok' | 'new' (a signature has not been matched with the capabilities yet), worker...}
local id = ARGV[1]
local job = job_read(id)
if job.state ~= '' then return {unmatched(job) and 'new' or 'ok'} end
local seq = call('INCR', K.sequence())
local last, prepare, count, blocked, finished = ARGV[10], ARGV[20], tonumber(ARGV[22]), tonumber(ARGV[23]), tonumber(ARGV[24])
local first_specs = 25
local first_blocked = first_specs + 2 * count
local first_finished = first_blocked + blocked
local done, waits, largest = {}, {}, 0
for at = first_finished, first_finished + 6 * finished - 1, 6 do
  local index, claim, worker, bytes = ARGV[at], ARGV[at + 1], ARGV[at + 2], num(ARGV[at + 4])
  done[index], largest = true, math.max(largest, bytes)
  item_write(job, index, {s = 'done', c = claim, w = worker, a = {}, b = bytes, f = 1})
  call('HSET', K.result(id), index, ARGV[at + 3])
  publish_meta(id, index, ARGV[at + 5], ARGV[9])
end
call('HSET', K.job(id), 'record', ARGV[2], 'submitter', ARGV[3], 'base', ARGV[4], 'level', ARGV[4], 'sig', ARGV[5], 'last_sig', ARGV[6],
  'cap', ARGV[7], 'aging_ms', ARGV[8], 'ttl_s', ARGV[9], 'last', last, 'host', ARGV[11], 'title', ARGV[14], 'seq', seq, 'total', count,
  'state', 'active', 'created_ms', NOW, 'place', '', 'done', finished, 'largest', largest,
  'kind', ARGV[17], 'spare', ARGV[18], 'grows', num(ARGV[19]), 'prepare', prepare, 'outer', ARGV[21])
call('ZADD', K.jobs(), seq, id)
call('SADD', K.active(), id)
if ARGV[12] == '' then call('HSET', K.job(id), 'keep_ms', ARGV[13]) else call('SET', K.owner(id), ARGV[12], 'PX', ARGV[13]) end
submitter_enter(ARGV[3])
for at = first_blocked, first_finished - 1 do waits[ARGV[at]] = true end
job = job_read(id)
for at = first_specs, first_blocked - 1, 2 do
  local index, spec = ARGV[at], ARGV[at + 1]
  call('HSET', K.spec(id), index, spec)
  if not done[index] then
    if waits[index] then item_write(job, index, {s = 'blocked', c = '', w = '', a = {}}) else call('RPUSH', K.pending(id), index) end
  end
end
local at = first_finished + 6 * finished
while ARGV[at] do
  call('HSET', K.prompts(id), ARGV[at], ARGV[at + 1])
  at = at + 2
end
use_signatures(job, ARGV[15], ARGV[16])
local out = {unmatched(job) and 'new' or 'ok'}
if is_over(job) then end_job(job, 'done', '', out) else offer(job, out) end
return out
