-- One elected process, once per tick: what nobody else would notice.
-- ARGV  process id, election ms, tick ms, lease ms, run id of this server, ownerless ms, max attempts, first wait ms, lost-worker error, meta
-- Gives  {number of gone workers, gone..., number of abandoned jobs, abandoned..., worker...}
local me, tick, lease = ARGV[1], num(ARGV[3]), num(ARGV[4])
if not call('SET', K.reaper(), me, 'NX', 'PX', ARGV[2]) then return {0, 0} end
local gone, abandoned, out = {}, {}, {}

-- After a restart of the server, or a pause of all reapers, every worker gets one lease to speak up first.
local facts = call('HMGET', K.reaper_facts(), 'run_id', 'last_ms', 'grace_ms')
local grace = num(facts[3])
if facts[1] ~= ARGV[5] or (facts[2] and NOW - num(facts[2]) > 3 * tick) then grace = NOW + lease end
call('HSET', K.reaper_facts(), 'run_id', ARGV[5], 'last_ms', NOW, 'grace_ms', string.format('%.0f', grace))

local function bury(name)
  for _, where in ipairs(call('HVALS', K.claims(name))) do
    local id, index = halves(where)
    local job, item = job_read(id), item_read(id, index)
    if item.s == 'running' and item.w == name then
      local claim = item.c
      if give_back(job, index, item, 'worker_lost', num(ARGV[7]), 0) then
        offer(job, out)
      else
        fail_item(job, index, item, claim, name, ARGV[9], ARGV[10], out)
      end
    end
  end
  local worker = worker_read(name)
  tickets_used(name, worker, worker.tickets)
  call('SREM', K.idle(worker.cap), name)
  call('SREM', K.cap_workers(worker.cap), name)
  call('SREM', K.workers(), name)
  call('DEL', K.worker(name), K.claims(name), K.barred(name))
  if call('SCARD', K.cap_workers(worker.cap)) == 0 then
    for _, sig in ipairs(call('SMEMBERS', K.cap_sigs(worker.cap))) do call('SREM', K.sig_caps(sig), worker.cap) end
    call('DEL', K.cap_sigs(worker.cap), K.idle(worker.cap))
    call('HDEL', K.caps(), worker.cap)
    call('HDEL', K.ticketed(), worker.cap)
  end
  gone[#gone + 1] = name
end

local names = call('SMEMBERS', K.workers())
for _, name in ipairs(names) do
  if NOW >= grace and call('EXISTS', K.lease(name)) == 0 then bury(name) end
end

for _, entry in ipairs(call('ZRANGEBYSCORE', K.backoff(), '-inf', NOW, 'LIMIT', 0, 500)) do
  call('ZREM', K.backoff(), entry)
  local id, index = halves(entry)
  local job, item = job_read(id), item_read(id, index)
  if item.s == 'waiting' then
    item.s = 'pending'
    item_write(id, index, item)
    requeue(job, index)
    if job.state == 'active' then
      offer(job, out)
    else -- kept for `jobs retry`, as long as the job itself
      call('EXPIRE', K.back(id), math.max(1, call('TTL', K.job(id))))
    end
  end
end

for _, id in ipairs(call('ZRANGEBYSCORE', K.aging(), '-inf', NOW, 'LIMIT', 0, 500)) do
  local job = job_read(id)
  call('ZADD', K.aging(), NOW + num(call('HGET', K.job(id), 'aging_ms')), id)
  if job.level < TOP_PRIORITY then
    job.level = job.level + 1
    job_set(job, 'level')
    place(job)
  end
end

for _, id in ipairs(call('SMEMBERS', K.active())) do
  local owned = call('EXISTS', K.owner(id)) == 1
  local parked = num(call('HGET', K.job(id), 'parked'))
  if owned ~= (parked == 0) and NOW >= grace then
    local job = job_read(id)
    job.parked = owned and 0 or NOW
    job_set(job, 'parked')
    event(id, 'job', '', '', '')
    offer(job, out)
  elseif not owned and parked > 0 and NOW - parked > num(ARGV[6]) then
    end_job(job_read(id), 'cancelled', 'its owner disappeared', out)
  end
end

-- Bytes of ended jobs that nobody will fetch are no longer in flight; the sum is made anew, so that no fault can skew it for long.
local total = 0
for _, id in ipairs(call('SMEMBERS', K.unsettled())) do
  local job = job_read(id)
  if job.state ~= 'active' and call('EXISTS', K.owner(id)) == 0 then
    abandoned[#abandoned + 1] = id
    job.unfetched = 0
    if job.state ~= '' then
      job_set(job, 'unfetched')
      book_bytes(job)
    else
      call('SREM', K.unsettled(), id)
    end
  else
    total = total + job.inflight
  end
end
call('SET', K.inflight(), string.format('%.0f', total))
offer_capped(out)

-- Lost tickets: whoever could work and has had no ticket for a tick gets one.
local ticketed = {}
for _, name in ipairs(call('SMEMBERS', K.workers())) do
  local worker = worker_read(name)
  if worker.tickets > 0 and NOW - worker.ticketed_ms > tick then tickets_used(name, worker, worker.tickets) end
  ticketed[worker.cap] = (ticketed[worker.cap] or 0) + worker.tickets
end
for cap, count in pairs(ticketed) do call('HSET', K.ticketed(), cap, count) end
for _, name in ipairs(call('SMEMBERS', K.workers())) do
  local worker = worker_read(name)
  if worker.tickets == 0 and call('EXISTS', K.lease(name)) == 1 then call_self(name, worker, out) end
end

local answer = {#gone}
for _, name in ipairs(gone) do answer[#answer + 1] = name end
answer[#answer + 1] = #abandoned
for _, id in ipairs(abandoned) do answer[#answer + 1] = id end
for _, name in ipairs(out) do answer[#answer + 1] = name end
return answer
