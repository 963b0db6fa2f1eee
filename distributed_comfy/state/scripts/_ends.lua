-- Third part of every script: how items and jobs end, and how they come back.
local function with_task_id(meta, job_id, index) -- celery_meta.py leaves the id empty where only the script knows the item
  return (string.gsub(meta, '"task_id": ""', '"task_id": "' .. job_id .. '-' .. index .. '"'))
end

local function publish_meta(job_id, index, meta, ttl_s)
  local key = K.meta(job_id .. '-' .. index)
  call('SET', key, meta, 'EX', ttl_s)
  call('PUBLISH', key, meta)
end

-- A running item stops being one: claim and counters.  Its worker has a slot more; who may be called again looks for work later.
local function stop_running(job, index, item)
  call('HDEL', K.claims(item.w), item.c)
  call('HDEL', K.unheld(item.w), item.c)
  call('HDEL', K.runs(job.id), index)
  job.running = job.running - 1
  job_set(job, 'running')
  submitter_count(job.submitter, -1, false)
end

local function requeue(job, index)
  call('RPUSH', index == job.last and K.finish(job.id) or K.back(job.id), index)
end

-- == signatures =====================================================================================================
local function release_signature(sig)
  if sig == '' or call('HINCRBY', K.sig_refs(), sig, -1) > 0 then return end
  for _, cap in ipairs(call('SMEMBERS', K.sig_caps(sig))) do call('SREM', K.cap_sigs(cap), sig) end
  for _, name in ipairs(call('SMEMBERS', K.sig_barred(sig))) do call('SREM', K.barred(name), sig) end
  call('DEL', K.sig_caps(sig), K.sig_barred(sig))
  call('HDEL', K.sigs(), sig)
  call('HDEL', K.sig_refs(), sig)
  call('SREM', K.matched(), sig)
end

-- True where a signature of the job still has to be compared with the capabilities: its submitter may have died over it.
local function unmatched(job)
  if call('SISMEMBER', K.matched(), job.sig) == 0 then return true end
  return job.last_sig ~= '' and call('SISMEMBER', K.matched(), job.last_sig) == 0
end

local function use_signatures(job, requirement, last_requirement)
  call('HSETNX', K.sigs(), job.sig, requirement)
  call('HINCRBY', K.sig_refs(), job.sig, 1)
  if job.last_sig ~= '' then
    call('HSETNX', K.sigs(), job.last_sig, last_requirement)
    call('HINCRBY', K.sig_refs(), job.last_sig, 1)
  end
end

-- == jobs ===========================================================================================================
local JOB_KEYS = {'job', 'prompts', 'spec', 'item', 'feeds', 'result', 'error', 'runs', 'pending', 'back', 'finish', 'events'} -- not its owner

local function stop_all(job, out)
  local flat = call('HGETALL', K.runs(job.id))
  for i = 1, #flat, 2 do
    local claim, name = halves(flat[i + 1])
    local item = item_read(job.id, flat[i])
    stop_running(job, flat[i], item)
    item_write(job, flat[i], {s = 'stopped', c = claim, w = name, a = item.a, was = item.was})
    call('PUBLISH', K.orders(name), 'cancel ' .. claim)
    look_for_work(name, out)
  end
end

-- Whoever waits for one of the other items through Celery learns that it will not come.  Nobody waits for a tile: the job's group has none.
local function revoke_rest(job, ttl_s)
  for number = 0, job.total - job.tiles - 1 do
    local index = digits(number)
    if call('HEXISTS', K.result(job.id), index) == 0 and call('HEXISTS', K.error(job.id), index) == 0 then
      publish_meta(job.id, index, with_task_id(REVOKED, job.id, index), ttl_s)
    end
  end
end

-- The job has ended: nothing of it is claimable, its running items are told to stop, its keys expire.
local function end_job(job, state, reason, out)
  local ttl_s = num(call('HGET', K.job(job.id), 'ttl_s'))
  job.state = state
  call('HSET', K.job(job.id), 'state', state, 'reason', reason, 'ended_ms', NOW)
  tally('job|' .. state)
  place(job)
  stop_all(job, out)
  if state ~= 'done' then revoke_rest(job, ttl_s) end
  call('SREM', K.active(), job.id)
  call('ZADD', K.ended(), NOW + ttl_s * 1000, job.id)
  submitter_leave(job.submitter)
  release_signature(job.sig)
  release_signature(job.last_sig)
  event(job.id, 'job', '', '', '')
  for _, name in ipairs(JOB_KEYS) do call('EXPIRE', K[name](job.id), ttl_s) end
end

-- An ended job becomes active again, under its plain signatures.
local function revive(job, requirement, last_requirement)
  job.state, job.sig, job.last_sig = 'active', (string.gsub(job.sig, '!.*', '')), (string.gsub(job.last_sig, '!.*', ''))
  job_set(job, 'state', 'sig', 'last_sig')
  call('HSET', K.job(job.id), 'reason', '')
  call('HDEL', K.job(job.id), 'ended_ms')
  call('SADD', K.active(), job.id)
  call('ZREM', K.ended(), job.id)
  submitter_enter(job.submitter)
  for _, name in ipairs(JOB_KEYS) do call('PERSIST', K[name](job.id)) end
  use_signatures(job, requirement, last_requirement)
end

-- == items ==========================================================================================================
local function is_generated(job, index) return index ~= job.last and index ~= job.prepare and not is_tile(job, index) end

local function generated(job) return job.total - job.tiles - (job.last ~= '' and 1 or 0) - (job.prepare ~= '' and 1 or 0) end

local function is_fed(job, index) return not is_generated(job, index) and (index ~= job.prepare or generated(job) > 0) end

-- The job goes on without this failed item: it can do without some ('all', or all but item 0: 'others'), and one is left.
local function is_spare(job, index)
  if job.spare == '' or not is_generated(job, index) or (job.spare == 'others' and index == '0') then return false end
  return job.failed < generated(job)
end

-- Nothing is left to run, and nothing will be added: the job is done, with or without the items that it could do without.
local function is_over(job) return job.grows == 0 and job.done + job.failed == job.total end

local function fail_item(job, index, item, claim, worker, cause, error_json, meta, out)
  tally('failure|' .. cause)
  item_write(job, index, {s = 'failed', c = claim, w = worker, a = item.a, r = item.r, was = item.was})
  call('HSET', K.error(job.id), index, error_json)
  job.failed = job.failed + 1
  job_set(job, 'failed')
  publish_meta(job.id, index, with_task_id(meta, job.id, index), call('HGET', K.job(job.id), 'ttl_s'))
  event(job.id, 'failed', index, claim, worker)
  if not is_spare(job, index) then
    call('HSET', K.job(job.id), 'fatal', index)
    end_job(job, 'failed', 'item ' .. index .. ' failed', out)
  elseif is_over(job) then
    end_job(job, 'done', '', out)
  else
    offer(job, out)
  end
end

-- Gives a running item back.  class '' uses up no attempt; returns false when its attempts are used up.  cause: for the tally, else the class.
local function give_back(job, index, item, class, max_attempts, wait_ms, cause)
  stop_running(job, index, item)
  if class ~= '' then
    item.a[class] = (item.a[class] or 0) + 1
    if item.a[class] >= max_attempts then return false end
    wait_ms = item.a[class] == 1 and 0 or wait_ms * 2 ^ (item.a[class] - 2) -- the first retry is immediate
  end
  local claim, name = item.c, item.w
  item.s, item.c, item.w, item.q = wait_ms > 0 and 'waiting' or 'pending', '', '', NOW + wait_ms
  item_write(job, index, item)
  tally('retry|' .. (cause or class ~= '' and class or 'released'))
  if wait_ms > 0 then call('ZADD', K.backoff(), NOW + wait_ms, job.id .. '|' .. index) else requeue(job, index) end
  event(job.id, 'released', index, claim, name)
  return true
end

-- == workers ========================================================================================================
-- Everything a worker has goes back; class, attempts and error as for `give_back` and `fail_item`.
local function drop_claims(name, class, max_attempts, error_json, meta, out)
  for _, where in ipairs(call('HVALS', K.claims(name))) do
    local id, index = halves(where)
    local job, item = job_read(id), item_read(id, index)
    if item.s == 'running' and item.w == name then
      local claim = item.c
      if give_back(job, index, item, class, max_attempts, 0) then
        offer(job, out)
      else
        fail_item(job, index, item, claim, name, class, error_json, meta, out)
      end
    end
  end
end

-- The worker leaves its capability, which goes with the last one that has it.
local function leave_capability(name, facts)
  if facts.cap == '' then return end
  for _, sig in ipairs(call('SMEMBERS', K.barred(name))) do call('SREM', K.sig_barred(sig), name) end
  call('DEL', K.barred(name))
  call('ZREM', K.idle(facts.cap), name)
  if call('EXISTS', K.idle(facts.cap)) == 0 then call('SREM', K.idle_caps(), facts.cap) end
  call('SREM', K.cap_workers(facts.cap), name)
  if call('EXISTS', K.cap_workers(facts.cap)) == 1 then return end
  for _, sig in ipairs(call('SMEMBERS', K.cap_sigs(facts.cap))) do call('SREM', K.sig_caps(sig), facts.cap) end
  call('DEL', K.cap_sigs(facts.cap))
  call('HDEL', K.caps(), facts.cap)
end
