-- What the owner of a job tells the table.  Idempotent.
-- ARGV  what, job, then:
--   own      owner, lease ms                  the owner lives, or another is the owner from now on because there is none
--   disown   owner                            the owner lets go
--   fetched  index, claim id                  the result is in the spool: no longer in flight
--   reopen   index, claim id, requirement, last requirement, max attempts, error, meta    the blob is gone or damaged: run the item again
--   unblock  (index, feed)...                 these items may run, in this order; those that are not blocked are left alone
--   extend   '1' where these are the last ones, templates, count, finished count, then `count` times: index, packed spec;  then for each
--            item that an earlier job finished and the owner has: index, claim id, worker, result, bytes, meta
--                                             the job has these items more, all blocked; an index that is known changes nothing
--   restore  (index, claim id, worker, result, bytes, meta)...   the owner has these, but a crash made the table forget that they were done
--   spool    host, spool, folder              where the owner keeps what it fetches, and where its files go in the end
--   settle                                    the owner has all it wants of an ended job: nothing is in flight any more
-- Gives  {'ok' | 'new' (own, reopen: match the job's signatures) | 'no', worker...}
local what, id = ARGV[1], ARGV[2]
local job = job_read(id)
if job.state == '' then return {'no'} end
local out = {'ok'}
local orders = {}

function orders.own()
  local owner = call('GET', K.owner(id))
  if owner and owner ~= ARGV[3] then return {'no'} end
  call('SET', K.owner(id), ARGV[3], 'PX', ARGV[4])
  if job.state ~= 'active' then return out end
  if unmatched(job) then out[1] = 'new' end
  if job.parked > 0 then
    job.parked = 0
    job_set(job, 'parked')
    event(id, 'job', '', '', '')
    offer(job, out)
  end
  return out
end

function orders.disown()
  if call('GET', K.owner(id)) == ARGV[3] then call('DEL', K.owner(id)) end
  return out
end

function orders.fetched()
  local item = item_read(id, ARGV[3])
  if item.c ~= ARGV[4] or item.f == 1 or item.s ~= 'done' then return out end
  job.unfetched = job.unfetched - unfetched_bytes(job, item)
  item.f = 1
  item_write(job, ARGV[3], item)
  job_set(job, 'unfetched')
  offer(job, out)
  return out
end

local function uncount(item) -- a done item is not done any more
  job.unfetched = job.unfetched - unfetched_bytes(job, item)
  job.done = job.done - 1
  job_set(job, 'done', 'unfetched')
  call('HDEL', K.result(id), ARGV[3])
  call('DEL', K.meta(id .. '-' .. ARGV[3]))
end

function orders.reopen()
  local item = item_read(id, ARGV[3])
  if item.r == ARGV[4] then -- done before; the answer may have been lost
    if job.state == 'active' and unmatched(job) then out[1] = 'new' end
    return out
  end
  if item.s ~= 'done' or item.c ~= ARGV[4] or job.state == 'cancelled' or job.state == 'failed' then return {'no'} end
  uncount(item)
  if job.state == 'done' then revive(job, ARGV[5], ARGV[6]) end
  if unmatched(job) then out[1] = 'new' end
  item.s, item.c, item.w, item.f, item.b, item.e, item.r, item.q = 'pending', '', '', nil, nil, nil, ARGV[4], NOW
  item.a.blob_missing = (item.a.blob_missing or 0) + 1
  if item.a.blob_missing >= num(ARGV[7]) then
    fail_item(job, ARGV[3], item, ARGV[4], '', 'blob_missing', ARGV[8], ARGV[9], out)
    return out
  end
  -- An earlier job's was never fed here; and what a tile read may be gone with its result, so its owner brings it again.
  if is_tile(job, ARGV[3]) or (is_fed(job, ARGV[3]) and call('HEXISTS', K.feeds(id), ARGV[3]) == 0) then item.s = 'blocked' end
  item_write(job, ARGV[3], item)
  tally('retry|blob_missing')
  if item.s == 'pending' then requeue(job, ARGV[3]) end
  event(id, 'released', ARGV[3], ARGV[4], '')
  offer(job, out)
  return out
end

-- Tiles stand behind what never ran, not with what was given back: that is served before all other jobs.
function orders.unblock()
  for at = 3, #ARGV, 2 do
    local index = ARGV[at]
    local item = item_read(id, index)
    if item.s == 'blocked' then
      if job.state ~= 'active' then return {'no'} end
      call('HSET', K.feeds(id), index, ARGV[at + 1])
      item.s, item.q = 'pending', NOW
      item_write(job, index, item)
      call('RPUSH', index == job.last and K.finish(id) or K.pending(id), index)
    end
  end
  offer(job, out)
  return out
end

local BLOCKED = '{"s":"blocked","c":"","w":""}'

-- New items out of `count` pairs from ARGV[first] on: the pairs, and each index with its row.
local function new_items(first, count)
  local indexes, specs, rows = {}, {}, {}
  for k = 1, count do indexes[k] = ARGV[first + 2 * k - 2] end
  local known = count > 0 and call('HMGET', K.spec(id), unpack(indexes)) or {}
  for k, index in ipairs(indexes) do
    if not known[k] then
      specs[#specs + 1], specs[#specs + 2], rows[index] = index, ARGV[first + 2 * k - 1], BLOCKED
    end
  end
  return specs, rows
end

local function enter_finished(first, count, rows) -- those of them that are new; how many
  local entered, ttl_s = 0, call('HGET', K.job(id), 'ttl_s')
  for at = first, first + 6 * count - 1, 6 do
    local index, bytes = ARGV[at], num(ARGV[at + 4])
    if rows[index] then
      rows[index] = cjson.encode({s = 'done', c = ARGV[at + 1], w = ARGV[at + 2], b = bytes, f = 1})
      call('HSET', K.result(id), index, ARGV[at + 3])
      publish_meta(id, index, ARGV[at + 5], ttl_s)
      job.tiles_largest = math.max(job.tiles_largest, bytes)
      entered = entered + 1
    end
  end
  return entered
end

function orders.extend()
  local final, count = ARGV[3] == '1' and job.grows == 1, tonumber(ARGV[5])
  local specs, rows = new_items(7, count)
  local added = #specs / 2
  if added == 0 and not final then return out end
  if job.state ~= 'active' or job.grows == 0 then return {'no'} end
  if added > 0 then
    local done = enter_finished(7 + 2 * count, tonumber(ARGV[6]), rows)
    local flat = {}
    for index, row in pairs(rows) do flat[#flat + 1], flat[#flat + 2] = index, row end
    call('HSET', K.spec(id), unpack(specs))
    call('HSET', K.item(id), unpack(flat))
    call('HSET', K.prompts(id), 'templates', ARGV[4])
    call('HINCRBY', K.job(id), 'blocked', added - done)
    tiles_count(job, 'blocked', added - done)
    tiles_count(job, 'done', done)
    job.total, job.tiles, job.done = job.total + added, job.tiles + added, job.done + done
  end
  if final then
    job.grows = 0
    event(id, 'job', '', '', '')
  end
  job_set(job, 'total', 'tiles', 'done', 'tiles_largest', 'grows')
  if is_over(job) then end_job(job, 'done', '', out) else offer(job, out) end
  return out
end

local function take_back(index, item, out) -- nobody runs it any more, and nobody will
  if item.s == 'running' then
    local claim, name = item.c, item.w
    stop_running(job, index, item)
    call('PUBLISH', K.orders(name), 'cancel ' .. claim)
    look_for_work(name, out)
    return
  end
  for _, list in ipairs({'pending', 'back', 'finish'}) do call('LREM', K[list](id), 0, index) end
  call('ZREM', K.backoff(), id .. '|' .. index)
end

local NOT_OVER = {blocked = true, pending = true, waiting = true, running = true}

function orders.restore()
  if job.state ~= 'active' then return {'no'} end
  local ttl_s = call('HGET', K.job(id), 'ttl_s')
  for at = 3, #ARGV, 6 do
    local index, claim, worker, bytes = ARGV[at], ARGV[at + 1], ARGV[at + 2], num(ARGV[at + 4])
    local item = item_read(id, index)
    if NOT_OVER[item.s] and call('HEXISTS', K.spec(id), index) == 1 then
      take_back(index, item, out)
      item_write(job, index, {s = 'done', c = claim, w = worker, b = bytes, f = 1, a = item.a, was = item.was})
      call('HSET', K.result(id), index, ARGV[at + 3])
      publish_meta(id, index, ARGV[at + 5], ttl_s)
      local largest = is_tile(job, index) and 'tiles_largest' or 'largest'
      job[largest], job.done = math.max(job[largest], bytes), job.done + 1
      event(id, 'done', index, claim, worker)
    end
  end
  job_set(job, 'done', 'largest', 'tiles_largest')
  if is_over(job) then end_job(job, 'done', '', out) else offer(job, out) end
  return out
end

function orders.spool()
  call('HSET', K.job(id), 'spool_host', ARGV[3], 'spool', ARGV[4], 'out', ARGV[5])
  return out
end

function orders.settle()
  if job.state == 'active' then return {'no'} end
  if job.unfetched > 0 then settle(job) end
  return out
end

local answer = orders[what]()
offer_room(answer)
return answer
