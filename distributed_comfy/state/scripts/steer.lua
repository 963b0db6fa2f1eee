-- What a person orders.  Idempotent.
-- ARGV  what, job or worker, argument
--   cancel job reason | pause job | resume job | priority job n | retry job, requirement, last requirement | drain worker | undrain worker |
--   suspend worker incarnation (its engine is down or it is about to end) | leave worker incarnation
-- Gives  {'ok' | 'new' (retry: match its signatures) | 'unknown' | state that does not allow it, worker...}
local what, id = ARGV[1], ARGV[2]
local out = {'ok'}

if what == 'drain' or what == 'undrain' then
  if call('SISMEMBER', K.workers(), id) == 0 then return {'unknown'} end
  call('HSET', K.worker(id), 'drained', what == 'drain' and 1 or 0)
  call_self(id, worker_read(id), out)
  return out
end

if what == 'suspend' or what == 'leave' then
  if call('HGET', K.worker(id), 'inc') ~= ARGV[3] then return {'unknown'} end
  call('HSET', K.worker(id), 'down', 1)
  if what == 'leave' then call('DEL', K.lease(id)) end
  worker_index(id)
  return out
end

local job = job_read(id)
if job.state == '' then return {'unknown'} end
if what == 'cancel' then
  if job.state == 'cancelled' then return {'ok'} end
  if job.state ~= 'active' then return {job.state} end
  end_job(job, 'cancelled', ARGV[3], out)
elseif what == 'pause' or what == 'resume' then
  if job.state ~= 'active' then return {job.state} end
  job.paused = what == 'pause' and 1 or 0
  job_set(job, 'paused')
  event(id, 'job', '', '', '')
  offer(job, out)
elseif what == 'priority' then
  if job.state ~= 'active' then return {job.state} end
  job.base, job.level = num(ARGV[3]), num(ARGV[3])
  job_set(job, 'base', 'level')
  offer(job, out)
elseif what == 'retry' then
  if job.state == 'active' then return {'ok'} end
  if job.state == 'done' then return {job.state} end
  if revive(job, ARGV[3], ARGV[4]) then out[1] = 'new' end
  job.failed, job.paused, job.parked = 0, 0, 0
  job_set(job, 'failed', 'paused', 'parked')
  call('DEL', K.error(id))
  local flat = call('HGETALL', K.item(id))
  for i = 1, #flat, 2 do
    local item = cjson.decode(flat[i + 1])
    if item.s == 'failed' or item.s == 'stopped' then
      item_write(id, flat[i], {s = 'pending', c = '', w = '', a = {}})
      requeue(job, flat[i])
    end
  end
  event(id, 'job', '', '', '')
  offer(job, out)
end
return out
