-- What a person, or a worker about itself, orders.  Idempotent.
-- ARGV  what, job or worker, argument
--   cancel job reason | pause job | resume job | priority job n | retry job, requirement, last requirement | drain worker | undrain worker |
--   suspend worker incarnation (its engine is down or it is about to end) | leave worker incarnation (it ends: what it has goes back)
-- Gives  {'ok' | 'new' (retry: match its signatures) | 'unknown' | state that does not allow it, worker...}
local what, id = ARGV[1], ARGV[2]
local out = {'ok'}
local orders = {}

-- == workers ========================================================================================================
local function turn_off() -- its tickets will find nothing, so others get them
  local facts = worker_read(id)
  local withdrawn = tickets_withdraw(id, facts)
  worker_index(id, facts)
  cover_all(withdrawn, out)
end

function orders.drain()
  call('HSET', K.worker(id), 'drained', 1)
  turn_off()
end

function orders.undrain()
  call('HSET', K.worker(id), 'drained', 0)
  look_for_work(id, out)
end

function orders.suspend()
  call('HSET', K.worker(id), 'down', 1)
  turn_off()
end

function orders.leave()
  call('HSET', K.worker(id), 'down', 1, 'left', 1)
  call('DEL', K.lease(id))
  turn_off()
  drop_claims(id, '', 0, '', '', out)
end

if orders[what] then
  if call('SISMEMBER', K.workers(), id) == 0 then return {'unknown'} end
  if (what == 'suspend' or what == 'leave') and call('HGET', K.worker(id), 'inc') ~= ARGV[3] then return {'unknown'} end
  orders[what]()
  offer_room(out)
  return out
end

-- == jobs ===========================================================================================================
local job = job_read(id)
if job.state == '' then return {'unknown'} end

local function change(field, value)
  if job.state ~= 'active' then return job.state end
  if job[field] == value then return end
  job[field] = value
  if field == 'base' then job.level = value end
  job_set(job, 'base', 'level', 'paused')
  event(id, 'job', '', '', '')
  offer(job, out)
end

function orders.pause() return change('paused', 1) end

function orders.resume() return change('paused', 0) end

function orders.priority() return change('base', num(ARGV[3])) end

function orders.cancel()
  if job.state == 'active' then end_job(job, 'cancelled', ARGV[3], out) end
  return job.state ~= 'cancelled' and job.state or nil
end

-- Items that the job did without run again after all, so the last stage waits for them; true where there are any.
local function block_last(flat)
  local gaps = false
  for i = 1, #flat, 2 do gaps = gaps or (flat[i] ~= job.last and cjson.decode(flat[i + 1]).s == 'failed') end
  if not gaps or job.last == '' or item_read(id, job.last).s == 'done' then return false end
  call('DEL', K.finish(id))
  call('ZREM', K.backoff(), id .. '|' .. job.last)
  item_write(id, job.last, {s = 'blocked', c = '', w = '', a = {}})
  return true
end

function orders.retry()
  if job.state == 'done' then return job.state end
  if job.state ~= 'active' then
    revive(job, ARGV[3], ARGV[4])
    job.failed, job.paused, job.parked = 0, 0, 0
    job_set(job, 'failed', 'paused', 'parked')
    call('DEL', K.error(id))
    local flat = call('HGETALL', K.item(id))
    local gaps = job.spare ~= '' and block_last(flat)
    for i = 1, #flat, 2 do
      local item = cjson.decode(flat[i + 1])
      if (item.s == 'failed' or item.s == 'stopped') and not (gaps and flat[i] == job.last) then
        item_write(id, flat[i], {s = 'pending', c = '', w = '', a = {}, q = NOW})
        requeue(job, flat[i])
      end
    end
    for _, index in ipairs(call('HKEYS', K.spec(id))) do -- those that ended the job's items for Celery
      if call('HEXISTS', K.result(id), index) == 0 then call('DEL', K.meta(id .. '-' .. index)) end
    end
    event(id, 'job', '', '', '')
    offer(job, out)
  end
  if unmatched(job) then out[1] = 'new' end
end

local refused = orders[what]()
if refused then return {refused} end
offer_room(out)
return out
