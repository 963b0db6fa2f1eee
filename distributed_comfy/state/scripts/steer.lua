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
  call('DEL', K.lease(id), K.status(id))
  turn_off()
  drop_claims(id, '', 0, '', '', out)
end

if orders[what] then
  if call('SISMEMBER', K.workers(), id) + call('SISMEMBER', K.guests(), id) == 0 then return {'unknown'} end
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

-- The items to run again, as {index, row}; whether some of them are such that the job went on without: what is fed with all of them waits
-- for them; and the tiles that wait again: what they read went with the end of the job, and its next owner brings it.
-- Once there is an image to upscale such items stay out: it was made without them, and the tiles are those of that image.
local function to_run_again()
  local found, gaps, tiles = {}, false, {}
  local fatal = call('HGET', K.job(id), 'fatal')
  local made = job.tiles > 0 or (job.prepare ~= '' and item_read(id, job.prepare).s == 'done')
  local flat = call('HGETALL', K.item(id))
  for i = 1, #flat, 2 do
    local index, text = flat[i], flat[i + 1]
    local failed = string.find(text, '"s":"failed"', 1, true)
    local gap = failed and job.spare ~= '' and is_generated(job, index)
    if is_tile(job, index) then
      if not string.find(text, '"s":"done"', 1, true) and not string.find(text, '"s":"blocked"', 1, true) then tiles[#tiles + 1] = index end
    elseif gap and made and index ~= fatal then
      job.failed = job.failed + 1
    elseif failed or string.find(text, '"s":"stopped"', 1, true) then
      found[#found + 1] = {index, cjson.decode(text)}
      gaps = gaps or gap
    end
  end
  table.sort(found, function(a, b) return num(a[1]) < num(b[1]) end)
  return found, gaps, tiles
end

local function block_again(index)
  local item = index ~= '' and item_read(id, index)
  if not item or item.s == 'done' then return end
  for _, list in ipairs({'pending', 'back', 'finish'}) do call('LREM', K[list](id), 0, index) end
  call('ZREM', K.backoff(), id .. '|' .. index)
  item_write(job, index, {s = 'blocked', c = '', w = '', a = {}, was = item.s})
end

function orders.retry()
  if job.state == 'done' then return job.state end
  if job.state ~= 'active' then
    revive(job, ARGV[3], ARGV[4])
    job.failed, job.paused, job.parked = 0, 0, 0
    local again, gaps, tiles = to_run_again()
    job_set(job, 'failed', 'paused', 'parked')
    call('HSET', K.job(id), 'retried_ms', NOW)
    for _, pair in ipairs(again) do
      local index, item = unpack(pair)
      call('HDEL', K.error(id), index)
      call('DEL', K.meta(id .. '-' .. index))
      item_write(job, index, {s = 'pending', c = '', w = '', a = {}, q = NOW, was = item.s})
      requeue(job, index)
    end
    for _, index in ipairs(tiles) do
      call('HDEL', K.error(id), index)
      call('DEL', K.meta(id .. '-' .. index))
      block_again(index)
    end
    if gaps then
      block_again(job.last)
      block_again(job.prepare)
    end
    for number = 0, job.total - job.tiles - 1 do -- those that ended the job's items for Celery
      local index = digits(number)
      if call('HEXISTS', K.result(id), index) + call('HEXISTS', K.error(id), index) == 0 then call('DEL', K.meta(id .. '-' .. index)) end
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
