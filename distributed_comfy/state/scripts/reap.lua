-- One elected process, once per tick: what nobody else would notice.  Idempotent: the same call gets the same answer for one tick.
-- ARGV  this call's own id, election ms, tick ms, lease ms, run id of this server, ownerless ms, max attempts, lost-worker error, meta
-- Gives  {number of gone workers, gone..., number of abandoned jobs, abandoned..., worker...}
local tick, lease = num(ARGV[3]), num(ARGV[4])
if not call('SET', K.reaper(), ARGV[1], 'NX', 'PX', ARGV[2]) then
  if call('GET', K.reaper()) ~= ARGV[1] then return {'0', '0'} end
  return call('LRANGE', K.reaper_answer(), 0, -1)
end
local gone, abandoned, out = {}, {}, {}

-- After a restart of the server, or a pause of all reapers, every worker and owner gets one lease to speak up first.
local facts = call('HMGET', K.reaper_facts(), 'run_id', 'last_ms', 'grace_ms')
local grace = num(facts[3])
if facts[1] ~= ARGV[5] or (facts[2] and NOW - num(facts[2]) > 3 * tick) then grace = NOW + lease end
call('HSET', K.reaper_facts(), 'run_id', ARGV[5], 'last_ms', NOW, 'grace_ms', digits(grace))

-- Workers and guests: those whose lease ran out leave; unanswered tickets are taken for lost.
local function bury(name)
  if call('HGET', K.worker(name), 'left') ~= '1' then tally('lost workers') end
  drop_claims(name, 'worker_lost', num(ARGV[7]), ARGV[8], ARGV[9], out)
  local worker = worker_read(name)
  tickets_withdraw(name, worker)
  leave_capability(name, worker)
  call('DEL', K.worker(name))
  call('SREM', K.guests(), name)
  if call('SREM', K.workers(), name) == 1 then gone[#gone + 1] = name end
end

for _, name in ipairs(call('SUNION', K.workers(), K.guests())) do
  if NOW >= grace and call('EXISTS', K.lease(name)) == 0 then
    bury(name)
  else
    local worker = worker_read(name)
    tickets_expire(name, worker, tick)
    worker_index(name, worker)
  end
end

-- Items whose wait is over.
for _, entry in ipairs(call('ZRANGEBYSCORE', K.backoff(), '-inf', NOW, 'LIMIT', 0, 500)) do
  call('ZREM', K.backoff(), entry)
  local id, index = halves(entry)
  local job, item = job_read(id), item_read(id, index)
  if item.s == 'waiting' then
    item.s = 'pending'
    item_write(job, index, item)
    requeue(job, index)
    if job.state == 'active' then
      offer(job, out)
    else -- kept for `jobs retry`, as long as the job itself
      call('EXPIRE', K.back(id), math.max(1, call('TTL', K.job(id))))
      call('EXPIRE', K.finish(id), math.max(1, call('TTL', K.job(id))))
    end
  end
end

-- Jobs that waited long enough for a step.
for _, id in ipairs(call('ZRANGEBYSCORE', K.aging(), '-inf', NOW, 'LIMIT', 0, 500)) do
  local job = job_read(id)
  call('ZADD', K.aging(), NOW + num(call('HGET', K.job(id), 'aging_ms')), id)
  if job.level < TOP_PRIORITY then
    job.level = job.level + 1
    job_set(job, 'level')
    place(job)
  end
end

-- Jobs without an owner.  One whose results are kept for whoever asks (keep_ms) needs none; where its own results leave no room for its
-- next item, it waits as long as they are kept.
local function stuck(job)
  if job.running > 0 or job.unfetched == 0 or job.offered > 0 or job.paused > 0 then return false end
  return call('LLEN', K.pending(job.id)) + call('LLEN', K.back(job.id)) > 0
end

local function watch_kept(job, keep_ms)
  local since = num(call('HGET', K.job(job.id), 'stuck_ms'))
  if not stuck(job) then
    if since > 0 then call('HDEL', K.job(job.id), 'stuck_ms') end
  elseif since == 0 then
    call('HSET', K.job(job.id), 'stuck_ms', NOW)
  elseif NOW - since > keep_ms then
    end_job(job, 'cancelled', 'nobody took its results, and they left no room for more', out)
  end
end

local function ownerless(id)
  local job, keep_ms = job_read(id), num(call('HGET', K.job(id), 'keep_ms'))
  if keep_ms > 0 then return watch_kept(job, keep_ms) end
  if job.parked == 0 then
    job.parked = NOW
    job_set(job, 'parked')
    event(id, 'job', '', '', '')
    place(job)
  elseif NOW - job.parked > num(ARGV[6]) then
    end_job(job, 'cancelled', 'its owner disappeared', out)
  end
end

for _, id in ipairs(NOW >= grace and call('SMEMBERS', K.active()) or {}) do
  if call('EXISTS', K.owner(id)) == 0 then ownerless(id) end
end

-- Bytes of ended jobs that nobody will fetch are no longer in flight.  A job that became done while its owner was gone waits for one as
-- long as a parked job does; results that are kept wait their time, also those of a job that failed.
local function may_be_fetched(job)
  local times = call('HMGET', K.job(job.id), 'ended_ms', 'keep_ms')
  local keep_ms = num(times[2])
  if job.state ~= 'done' and keep_ms == 0 then return false end
  return NOW - num(times[1]) <= (keep_ms > 0 and keep_ms or num(ARGV[6]))
end

for _, id in ipairs(call('HKEYS', K.unsettled())) do
  local job = call('EXISTS', K.owner(id)) == 0 and job_read(id)
  if job and job.state ~= 'active' and not may_be_fetched(job) then
    abandoned[#abandoned + 1] = id
    if job.state == '' then book_bytes(job) else settle(job) end
  end
end

for _, id in ipairs(call('ZRANGEBYSCORE', K.ended(), '-inf', NOW, 'LIMIT', 0, 500)) do -- their keys have expired
  call('ZREM', K.ended(), id)
  call('ZREM', K.jobs(), id)
end
offer_capped(out)
for _, sig in ipairs(call('ZRANGE', K.work(), 0, -1)) do cover(sig, out) end

local answer = {tostring(#gone)}
for _, name in ipairs(gone) do answer[#answer + 1] = name end
answer[#answer + 1] = tostring(#abandoned)
for _, id in ipairs(abandoned) do answer[#answer + 1] = id end
for _, name in ipairs(out) do answer[#answer + 1] = name end
call('DEL', K.reaper_answer())
for _, part in ipairs(answer) do call('RPUSH', K.reaper_answer(), part) end
call('PEXPIRE', K.reaper_answer(), ARGV[2])
return answer
