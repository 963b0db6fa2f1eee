-- Shared by all scripts, behind the key functions K of keys.py.  Arguments come as ARGV; keys are derived from them, because the
-- script itself chooses the job.  Ids, seeds, records and results are opaque strings here: cjson would round above 2^53.
local call = redis.call
local STEP = 1099511627776 -- 2^40: scores are (running * STEP + order)
local TOP_PRIORITY = 9

local clock = call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000) -- ms

local function num(value) return tonumber(value or 0) or 0 end

local function halves(text) -- "a|b" -> a, b
  local at = string.find(text, '|', 1, true)
  return string.sub(text, 1, at - 1), string.sub(text, at + 1)
end

-- == jobs ===========================================================================================================
local NUMBERS = {'paused', 'parked', 'seq', 'base', 'level', 'running', 'done', 'failed', 'total', 'largest', 'unfetched', 'inflight', 'cap'}
local TEXTS = {'state', 'sig', 'last_sig', 'last', 'submitter', 'place'}

local function job_read(id)
  local fields = {}
  for _, name in ipairs(NUMBERS) do fields[#fields + 1] = name end
  for _, name in ipairs(TEXTS) do fields[#fields + 1] = name end
  local values = call('HMGET', K.job(id), unpack(fields))
  local job = {id = id}
  for i, name in ipairs(fields) do
    if i <= #NUMBERS then job[name] = num(values[i]) else job[name] = values[i] or '' end
  end
  return job
end

local function job_set(job, ...)
  local pairs_ = {}
  for _, name in ipairs({...}) do
    pairs_[#pairs_ + 1] = name
    pairs_[#pairs_ + 1] = type(job[name]) == 'number' and string.format('%.0f', job[name]) or job[name]
  end
  call('HSET', K.job(job.id), unpack(pairs_))
end

local function item_read(job_id, index)
  local text = call('HGET', K.item(job_id), index)
  local item = text and cjson.decode(text) or {s = 'pending', c = '', w = ''}
  item.a = item.a or {}
  return item
end

local function item_write(job_id, index, item)
  if next(item.a) == nil then item.a = nil end -- an empty table would come back as a list
  call('HSET', K.item(job_id), index, cjson.encode(item))
  item.a = item.a or {}
end

local function event(job_id, kind, index, claim, worker)
  call('XADD', K.events(job_id), 'MAXLEN', '~', '1000', '*', 'k', kind, 'i', index, 'c', claim or '', 'w', worker or '')
end

-- == the claim index: every job stands where its fields say, and `place` is the only function that puts it there ====
local function submitter_score(name)
  local values = call('HMGET', K.submitter(name), 'running', 'served_seq')
  return num(values[1]) * STEP + num(values[2])
end

local function submitter_count(name, delta, served)
  call('HINCRBY', K.submitter(name), 'running', delta)
  if served then
    call('HSET', K.submitter(name), 'served_seq', call('INCR', K.served()), 'served_ms', NOW)
  end
  local score = submitter_score(name)
  for _, place in ipairs(call('SMEMBERS', K.submitter_places(name))) do
    local sig, level = halves(place)
    call('ZADD', K.q_submitters(sig, level), string.format('%.0f', score), name)
  end
end

local function leave_level(job)
  if job.place == '' then return end
  local sig, level = halves(job.place)
  local jobs = K.q_jobs(sig, level, job.submitter)
  call('ZREM', jobs, job.id)
  if call('EXISTS', jobs) == 0 then
    call('ZREM', K.q_submitters(sig, level), job.submitter)
    call('SREM', K.submitter_places(job.submitter), job.place)
    if call('EXISTS', K.q_submitters(sig, level)) == 0 then call('ZREM', K.q_levels(sig), level) end
  end
end

local function join_level(job, place)
  local sig, level = halves(place)
  call('ZADD', K.q_levels(sig), level, level)
  call('SADD', K.submitter_places(job.submitter), place)
  call('ZADD', K.q_submitters(sig, level), string.format('%.0f', submitter_score(job.submitter)), job.submitter)
end

local function capable_workers(sig)
  local count = 0
  for _, cap in ipairs(call('SMEMBERS', K.sig_caps(sig))) do count = count + call('SCARD', K.cap_workers(cap)) end
  return count
end

local function at_byte_cap(job)
  if job.running == 0 and job.unfetched == 0 then return false end -- one claim is always allowed
  if job.largest == 0 then return job.running >= 2 * capable_workers(job.sig) end
  if job.unfetched + (job.running + 1) * job.largest > job.cap then return true end
  local limit = num(call('HGET', K.limits(), 'all'))
  if limit == 0 then limit = 4294967296 end
  return num(call('GET', K.inflight())) + job.largest > limit
end

local function book_bytes(job)
  local bytes = job.unfetched + job.running * job.largest
  if job.state ~= 'active' then bytes = job.unfetched end
  if bytes ~= job.inflight then
    call('INCRBY', K.inflight(), string.format('%.0f', bytes - job.inflight))
    job.inflight = bytes
    job_set(job, 'inflight')
    if bytes > 0 then call('SADD', K.unsettled(), job.id) else call('SREM', K.unsettled(), job.id) end
  end
end

-- Puts the job where its fields say it belongs; returns how many of its items a worker may claim now.
local function place(job)
  book_bytes(job)
  local live = job.state == 'active' and job.paused == 0 and job.parked == 0
  local finish, back, pending, full = 0, 0, 0, false
  if live then
    finish = call('LLEN', K.finish(job.id))
    back = call('LLEN', K.back(job.id))
    pending = call('LLEN', K.pending(job.id))
    full = back + pending > 0 and at_byte_cap(job)
  end
  if job.last_sig ~= '' then
    if finish > 0 then call('ZADD', K.q_finish(job.last_sig), job.seq, job.id) else call('ZREM', K.q_finish(job.last_sig), job.id) end
  end
  if full then
    call('ZADD', K.capped(), job.seq, job.id)
    back, pending = 0, 0
  else
    call('ZREM', K.capped(), job.id)
  end
  if back > 0 then call('ZADD', K.q_back(job.sig), job.seq, job.id) else call('ZREM', K.q_back(job.sig), job.id) end
  local where = pending > 0 and (job.sig .. '|' .. job.level) or ''
  if where ~= job.place then
    leave_level(job)
    if where ~= '' then join_level(job, where) end
    job.place = where
    job_set(job, 'place')
  end
  if where ~= '' then
    call('ZADD', K.q_jobs(job.sig, job.level, job.submitter), string.format('%.0f', job.running * STEP + job.seq), job.id)
    if call('ZSCORE', K.aging(), job.id) == false then
      call('ZADD', K.aging(), NOW + num(call('HGET', K.job(job.id), 'aging_ms')), job.id)
    end
  else
    call('ZREM', K.aging(), job.id)
  end
  return finish + back + pending
end

-- == workers and tickets ============================================================================================
local function worker_free(name, facts) -- free slots, tickets under way counted as taken
  return num(facts.slots) - call('HLEN', K.claims(name)) - num(facts.tickets)
end

local function worker_read(name)
  local v = call('HMGET', K.worker(name), 'inc', 'cap', 'slots', 'tickets', 'ticketed_ms', 'drained', 'warm_job', 'warm_ms', 'down')
  return {inc = v[1] or '', cap = v[2] or '', slots = num(v[3]), tickets = num(v[4]), ticketed_ms = num(v[5]), drained = math.max(num(v[6]), num(v[9])),
    warm_job = v[7] or '', warm_ms = num(v[8])}
end

-- The idle sets are an index, derived here from claims, tickets and the lease.
local function worker_index(name, facts)
  facts = facts or worker_read(name)
  if facts.cap == '' then return facts end
  if facts.drained == 0 and worker_free(name, facts) > 0 and call('EXISTS', K.lease(name)) == 1 then
    call('SADD', K.idle(facts.cap), name)
  else
    call('SREM', K.idle(facts.cap), name)
  end
  return facts
end

local function ticket(name, facts, out)
  call('HINCRBY', K.worker(name), 'tickets', 1)
  call('HSET', K.worker(name), 'ticketed_ms', NOW)
  call('HINCRBY', K.ticketed(), facts.cap, 1)
  facts.tickets = facts.tickets + 1
  worker_index(name, facts)
  out[#out + 1] = name
end

local function tickets_used(name, facts, count)
  count = math.min(count, facts.tickets)
  if count > 0 then
    facts.tickets = facts.tickets - count
    call('HINCRBY', K.worker(name), 'tickets', -count)
    call('HINCRBY', K.ticketed(), facts.cap, -count)
  end
end

-- Tickets for up to `count` idle workers that serve `sig`.
local function call_workers(sig, count, out)
  for _, cap in ipairs(call('SMEMBERS', K.sig_caps(sig))) do
    local passed = {}
    while count > 0 do
      local name = call('SPOP', K.idle(cap))
      if not name then break end
      local facts = worker_read(name)
      if facts.cap == cap and facts.drained == 0 and call('EXISTS', K.lease(name)) == 1 and worker_free(name, facts) > 0 then
        if call('SISMEMBER', K.barred(name), sig) == 1 then
          passed[#passed + 1] = name
        else
          ticket(name, facts, out)
          count = count - 1
        end
      end
    end
    if #passed > 0 then call('SADD', K.idle(cap), unpack(passed)) end
    if count <= 0 then return end
  end
end

-- Places the job and calls workers for what it offers.
local function offer(job, out)
  local claimable = place(job)
  if claimable == 0 then return 0 end
  local finish = job.state == 'active' and call('ZSCORE', K.q_finish(job.last_sig), job.id) and call('LLEN', K.finish(job.id)) or 0
  if finish > 0 then call_workers(job.last_sig, finish, out) end
  if claimable > finish then call_workers(job.sig, claimable - finish, out) end
  return claimable
end

-- Jobs that the cap on all bytes holds back come again as soon as there is room.
local function offer_capped(out)
  for _, id in ipairs(call('ZRANGE', K.capped(), 0, 7)) do
    local job = job_read(id)
    if not at_byte_cap(job) then offer(job, out) end
  end
end

local function signatures_of(name, facts)
  return call('SDIFF', K.cap_sigs(facts.cap), K.barred(name))
end

-- How many items this worker could claim, counted no further than `limit`.
local function work_for(name, facts, limit)
  local count = 0
  for _, sig in ipairs(signatures_of(name, facts)) do
    for _, kind in ipairs({'back', 'finish'}) do
      for _, id in ipairs(call('ZRANGE', K['q_' .. kind](sig), 0, limit - 1)) do
        count = count + call('LLEN', K[kind](id))
        if count >= limit then return limit end
      end
    end
    for _, level in ipairs(call('ZRANGE', K.q_levels(sig), 0, -1)) do
      for _, submitter in ipairs(call('ZRANGE', K.q_submitters(sig, level), 0, limit - 1)) do
        for _, id in ipairs(call('ZRANGE', K.q_jobs(sig, level, submitter), 0, limit - 1)) do
          count = count + call('LLEN', K.pending(id))
          if count >= limit then return limit end
        end
      end
    end
  end
  return count
end

-- A worker that has become able to claim calls itself, unless tickets under way already cover the work.
local function call_self(name, facts, out)
  worker_index(name, facts)
  local free = worker_free(name, facts)
  if facts.drained == 1 or free <= 0 or facts.cap == '' then return end
  local under_way = math.max(0, num(call('HGET', K.ticketed(), facts.cap)))
  local work = work_for(name, facts, under_way + free) - under_way
  for _ = 1, math.min(free, work) do ticket(name, facts, out) end
end

-- == ends of items and jobs =========================================================================================
local function publish_meta(job_id, index, meta, ttl_s)
  if meta == '' then return end
  local key = K.meta(job_id .. '-' .. index)
  call('SETEX', key, ttl_s, meta)
  call('PUBLISH', key, meta)
end

-- A running item stops being one: claim, counters and the worker's slot are released.
local function stop_running(job, index, item)
  call('HDEL', K.claims(item.w), item.c)
  call('HDEL', K.runs(job.id), index)
  job.running = job.running - 1
  job_set(job, 'running')
  submitter_count(job.submitter, -1, false)
  worker_index(item.w)
end

local function requeue(job, index)
  if index == job.last then call('RPUSH', K.finish(job.id), index) else call('RPUSH', K.back(job.id), index) end
end

local function forget_submitter(job)
  if call('HINCRBY', K.submitter(job.submitter), 'jobs', -1) <= 0 and num(call('HGET', K.submitter(job.submitter), 'running')) <= 0 then
    call('DEL', K.submitter(job.submitter))
  end
end

local function release_signature(sig)
  if sig == '' or call('HINCRBY', K.sig_refs(), sig, -1) > 0 then return end
  for _, cap in ipairs(call('SMEMBERS', K.sig_caps(sig))) do call('SREM', K.cap_sigs(cap), sig) end
  call('DEL', K.sig_caps(sig))
  call('HDEL', K.sigs(), sig)
  call('HDEL', K.sig_refs(), sig)
end

-- Counts the job among the users of its signatures; true when one of them is new and must be matched with the capabilities.
local function use_signatures(job, requirement, last_requirement)
  local new = call('HSETNX', K.sigs(), job.sig, requirement) == 1
  call('HINCRBY', K.sig_refs(), job.sig, 1)
  if job.last_sig ~= '' then
    new = call('HSETNX', K.sigs(), job.last_sig, last_requirement) == 1 or new
    call('HINCRBY', K.sig_refs(), job.last_sig, 1)
  end
  return new
end

local JOB_KEYS = {'job', 'prompts', 'spec', 'item', 'result', 'error', 'runs', 'pending', 'back', 'finish', 'events'} -- the owner's lease has a life of its own

-- The job has ended: nothing of it is claimable, its running items are told to stop, its keys expire.
local function end_job(job, state, reason, out)
  job.state = state
  call('HSET', K.job(job.id), 'state', state, 'reason', reason, 'ended_ms', NOW)
  for index, run in pairs((function()
    local flat, runs = call('HGETALL', K.runs(job.id)), {}
    for i = 1, #flat, 2 do runs[flat[i]] = flat[i + 1] end
    return runs
  end)()) do
    local claim, name = halves(run)
    local item = item_read(job.id, index)
    stop_running(job, index, item)
    item_write(job.id, index, {s = 'stopped', c = claim, w = name, a = item.a})
    call('PUBLISH', K.orders(name), 'cancel ' .. claim)
    call_self(name, worker_read(name), out)
  end
  place(job)
  call('SREM', K.active(), job.id)
  forget_submitter(job)
  release_signature(job.sig)
  release_signature(job.last_sig)
  event(job.id, 'job', '', '', '')
  local ttl = num(call('HGET', K.job(job.id), 'ttl_s'))
  for _, name in ipairs(JOB_KEYS) do call('EXPIRE', K[name](job.id), ttl) end
  offer_capped(out)
end

-- An ended job becomes active again, under its plain signatures; true when one of them must be matched anew.
local function revive(job, requirement, last_requirement)
  job.state, job.sig, job.last_sig = 'active', (string.gsub(job.sig, '!.*', '')), (string.gsub(job.last_sig, '!.*', ''))
  job_set(job, 'state', 'sig', 'last_sig')
  call('HSET', K.job(job.id), 'reason', '')
  call('HDEL', K.job(job.id), 'ended_ms')
  call('SADD', K.active(), job.id)
  call('HINCRBY', K.submitter(job.submitter), 'jobs', 1)
  for _, name in ipairs(JOB_KEYS) do call('PERSIST', K[name](job.id)) end
  return use_signatures(job, requirement, last_requirement)
end

-- Gives a running item back.  class '' uses up no attempt; returns false when its attempts are used up.
local function give_back(job, index, item, class, max_attempts, wait_ms)
  stop_running(job, index, item)
  if class ~= '' then
    item.a[class] = (item.a[class] or 0) + 1
    if item.a[class] >= max_attempts then return false end
    wait_ms = item.a[class] == 1 and 0 or wait_ms * 2 ^ (item.a[class] - 2) -- the first retry is immediate
  end
  local claim, name = item.c, item.w
  item.s, item.c, item.w = 'pending', '', ''
  item_write(job.id, index, item)
  if wait_ms > 0 then
    item.s = 'waiting'
    item_write(job.id, index, item)
    call('ZADD', K.backoff(), NOW + wait_ms, job.id .. '|' .. index)
  else
    requeue(job, index)
  end
  event(job.id, 'released', index, claim, name)
  return true
end

local function fail_item(job, index, item, claim, worker, error_json, meta, out)
  item_write(job.id, index, {s = 'failed', c = claim, w = worker, a = item.a})
  call('HSET', K.error(job.id), index, error_json)
  job.failed = job.failed + 1
  job_set(job, 'failed')
  meta = string.gsub(meta, '"task_id": ""', '"task_id": "' .. job.id .. '-' .. index .. '"')
  publish_meta(job.id, index, meta, call('HGET', K.job(job.id), 'ttl_s'))
  event(job.id, 'failed', index, claim, worker)
  end_job(job, 'failed', 'item ' .. index .. ' failed', out)
end
