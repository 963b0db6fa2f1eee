-- First part of every script, after the key functions K of keys.py: jobs, items, the claim index and the byte caps.
-- Arguments come as ARGV; keys are derived from them, because the script itself chooses the job.  Ids, seeds, records and results
-- are opaque strings here: cjson would round above 2^53.
local call = redis.call
local STEP = 1099511627776 -- 2^40: scores are (running * STEP + order)
local TOP_PRIORITY = 9

local clock = call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000) -- ms

local function num(value) return tonumber(value or 0) or 0 end

local function digits(value) return string.format('%.0f', value) end

local function halves(text) -- "a|b" -> a, b
  local at = string.find(text, '|', 1, true)
  return string.sub(text, 1, at - 1), string.sub(text, at + 1)
end

-- == jobs and items =================================================================================================
local NUMBERS = {'paused', 'parked', 'seq', 'base', 'level', 'running', 'done', 'failed', 'total', 'largest', 'unfetched', 'cap',
  'offered', 'offered_last', 'settled', 'created_ms', 'grows', 'tiles', 'tiles_done', 'tiles_largest'}
local TEXTS = {'state', 'sig', 'last_sig', 'last', 'prepare', 'submitter', 'place', 'kind', 'spare', 'outer'}

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
  local flat = {}
  for _, name in ipairs({...}) do
    flat[#flat + 1] = name
    flat[#flat + 1] = type(job[name]) == 'number' and digits(job[name]) or job[name]
  end
  call('HSET', K.job(job.id), unpack(flat))
end

-- Items that `extend` added; their indexes come after those of all others.
local function is_tile(job, index) return job.tiles > 0 and num(index) >= job.total - job.tiles end

local function item_read(job_id, index)
  local text = call('HGET', K.item(job_id), index)
  local item = text and cjson.decode(text) or {s = 'pending', c = '', w = ''}
  item.a, item.was = item.a or {}, item.s
  return item
end

-- Counters for metrics, which cannot look at each item.
local function tiles_count(job, state, by)
  call('HINCRBY', K.job(job.id), 'tiles_' .. state, by)
  if state == 'done' then job.tiles_done = job.tiles_done + by end
end

local function moved(job, index, was, is)
  if was == 'blocked' or is == 'blocked' then call('HINCRBY', K.job(job.id), 'blocked', is == 'blocked' and 1 or -1) end
  if is_tile(job, index) then
    tiles_count(job, was, -1)
    tiles_count(job, is, 1)
  end
end

local function item_write(job, index, item) -- item.was: its state in the table
  local was = item.was
  item.was = nil
  if next(item.a) == nil then item.a = nil end -- an empty table would come back as a list
  call('HSET', K.item(job.id), index, cjson.encode(item))
  item.a, item.was = item.a or {}, item.s
  if was ~= item.s then moved(job, index, was, item.s) end
end

local function event(job_id, kind, index, claim, worker)
  call('XADD', K.events(job_id), 'MAXLEN', '~', '1000', '*', 'k', kind, 'i', index, 'c', claim or '', 'w', worker or '')
end

-- == tallies for metrics (tallies.py names them); callers have checked that their transition has not happened before ==
local function tally(name, by) call('HINCRBY', K.tallies(), name, by or 1) end

local function tally_time(what, kind, ms) -- a histogram: one more in its bucket, and the sum
  local bound = 'inf'
  for _, limit in ipairs(BOUNDS_MS) do
    if ms <= limit then
      bound = limit
      break
    end
  end
  tally(what .. '|' .. kind .. '|' .. bound)
  tally(what .. '|' .. kind .. '|sum', math.max(0, math.floor(ms)))
end

local function kind_of(job, index)
  if index == job.last then return 'last' end
  if index == job.prepare then return 'prepare' end
  if is_tile(job, index) then return 'tile' end
  return job.kind ~= '' and job.kind or 'generate'
end

-- == submitters =====================================================================================================
local function submitter_score(name)
  local values = call('HMGET', K.submitter(name), 'running', 'served_seq')
  return digits(num(values[1]) * STEP + num(values[2]))
end

local function submitter_count(name, delta, served)
  call('HINCRBY', K.submitter(name), 'running', delta)
  if served then call('HSET', K.submitter(name), 'served_seq', call('INCRBY', K.served(), 2), 'served_ms', NOW) end
  local score = submitter_score(name)
  for _, level in ipairs(call('ZRANGE', K.levels(), 0, -1)) do call('ZADD', K.level(level), 'XX', score, name) end
end

local function submitter_enter(name) -- a newcomer stands behind all but whoever was served last
  call('HINCRBY', K.submitter(name), 'jobs', 1)
  call('HSETNX', K.submitter(name), 'served_seq', math.max(0, num(call('GET', K.served())) - 1))
end

local function submitter_leave(name)
  if call('HINCRBY', K.submitter(name), 'jobs', -1) <= 0 then call('DEL', K.submitter(name)) end
end

-- == byte caps ======================================================================================================
local function capable_workers(sig, enough)
  local count = 0
  for _, cap in ipairs(call('SMEMBERS', K.sig_caps(sig))) do
    count = count + call('SCARD', K.cap_workers(cap))
    if count >= enough then break end
  end
  return count
end

-- Bytes that a running item may add, as those before it did, and whether any was before it.  Tiles are unlike what they are cut from;
-- once a job has tiles nothing else of it runs, but for what is run again.
local function next_bytes(job)
  if job.tiles > 0 then return job.tiles_largest, job.tiles_largest > 0 or job.tiles_done > 0 end
  return job.largest, job.largest > 0 or job.done > 0
end

-- How many of `wanted` further items of the job may run now, and what holds back the rest: 'size' (its first result is not known),
-- 'own' or 'all' (a cap is reached).
local function byte_room(job, wanted)
  local room, hold = wanted, nil
  local bytes, known = next_bytes(job)
  if not known then
    room, hold = 2 * capable_workers(job.sig, (job.running + wanted) / 2) - job.running, 'size'
  elseif bytes > 0 then
    room, hold = math.floor((job.cap - job.unfetched) / bytes) - job.running, 'own'
    local limit = num(call('HGET', K.limits(), 'all'))
    if limit == 0 then limit = 4294967296 end
    if room > 0 and num(call('GET', K.inflight())) + bytes > limit then room, hold = 0, 'all' end
  end
  if job.running == 0 and job.unfetched == 0 then room = math.max(room, 1) end -- one claim is always allowed
  if room >= wanted then return wanted, nil end
  return math.max(room, 0), hold
end

-- The bytes of a done item that count as unfetched: none once it was fetched, or its job was settled since.
local function unfetched_bytes(job, item)
  return item.s == 'done' and item.f ~= 1 and num(item.e) == job.settled and num(item.b) or 0
end

local room_made = false -- bytes are no longer in flight: jobs held by the cap on all bytes may go on

local function book_bytes(job)
  local bytes = job.unfetched + (job.state == 'active' and job.running * next_bytes(job) or 0)
  local booked = num(call('HGET', K.unsettled(), job.id))
  if bytes == booked then return end
  call('INCRBY', K.inflight(), digits(bytes - booked))
  if bytes > 0 then call('HSET', K.unsettled(), job.id, digits(bytes)) else call('HDEL', K.unsettled(), job.id) end
  room_made = room_made or bytes < booked
end

local function settle(job) -- nobody will fetch what is there
  job.unfetched, job.settled = 0, job.settled + 1
  job_set(job, 'unfetched', 'settled')
  book_bytes(job)
end

-- == the claim index: every job stands where its fields say, and `place` is the only function that puts it there ====
local function list_place(kind, sig, job, count) -- kind: back or finish
  if sig == '' then return end
  local jobs, heads = K[kind .. '_jobs'](sig), K[kind .. '_heads']()
  local changed = count > 0 and call('ZADD', jobs, job.seq, job.id) or count == 0 and call('ZREM', jobs, job.id)
  if changed == 0 then return end
  local first = call('ZRANGE', jobs, 0, 0, 'WITHSCORES')
  if first[2] then call('ZADD', heads, first[2], sig) else call('ZREM', heads, sig) end
end

local function refresh_head(level, submitter, sig)
  local heads = K.heads(level, submitter)
  local first = call('ZRANGE', K.queue(level, sig, submitter), 0, 0, 'WITHSCORES')
  if first[2] then
    call('ZADD', heads, first[2], sig)
    return
  end
  call('ZREM', heads, sig)
  if call('EXISTS', heads) == 1 then return end
  call('ZREM', K.level(level), submitter)
  if call('EXISTS', K.level(level)) == 0 then call('ZREM', K.levels(), level) end
end

local function queue_place(job, count)
  local where = count > 0 and (job.sig .. '|' .. job.level) or ''
  if where ~= job.place then
    if job.place ~= '' then
      local sig, level = halves(job.place)
      call('ZREM', K.queue(level, sig, job.submitter), job.id)
      refresh_head(level, job.submitter, sig)
    end
    if where ~= '' then
      call('ZADD', K.levels(), job.level, job.level)
      call('ZADD', K.level(job.level), submitter_score(job.submitter), job.submitter)
    end
    job.place = where
    job_set(job, 'place')
  end
  if where == '' then
    call('ZREM', K.aging(), job.id)
    return
  end
  call('ZADD', K.queue(job.level, job.sig, job.submitter), digits(job.running * STEP + job.seq), job.id)
  refresh_head(job.level, job.submitter, job.sig)
  call('ZADD', K.aging(), 'NX', NOW + num(call('HGET', K.job(job.id), 'aging_ms')), job.id)
end

local function work_count(job, field, sig, count)
  local delta = count - job[field]
  if delta == 0 then return end
  if num(call('ZINCRBY', K.work(), delta, sig)) <= 0 then call('ZREM', K.work(), sig) end
  job[field] = count
  job_set(job, field)
end

-- Puts the job where its fields say it belongs.
local function place(job)
  book_bytes(job)
  local finish, back, pending, room, hold = 0, 0, 0, 0, nil
  if job.state == 'active' and job.paused == 0 and job.parked == 0 then
    finish = call('LLEN', K.finish(job.id))
    back = call('LLEN', K.back(job.id))
    pending = call('LLEN', K.pending(job.id))
    room, hold = byte_room(job, back + pending)
  end
  if room == 0 then back, pending = 0, 0 end
  if hold == 'all' or hold == 'size' then call('ZADD', K.capped(), job.seq, job.id) else call('ZREM', K.capped(), job.id) end
  list_place('finish', job.last_sig, job, finish)
  list_place('back', job.sig, job, back)
  queue_place(job, pending)
  work_count(job, 'offered', job.sig, room)
  work_count(job, 'offered_last', job.last_sig, finish)
end
