-- Second part of every script: workers, tickets, and who is called for what.
--
-- A ticket is sent for one signature, though the worker that comes may take any item.  After every script holds, for each signature:
-- as many tickets are under way for it as it has items to claim, or none of its workers is idle.  `cover` restores that, so nothing
-- waits for the reaper unless a ticket was lost.
local UNANSWERED = 100 -- a worker that let a ticket pass is called after all others

local function worker_read(name)
  local v = call('HMGET', K.worker(name), 'inc', 'cap', 'slots', 'tickets', 'ticketed_ms', 'drained', 'down', 'warm_job', 'warm_ms', 'unanswered')
  return {inc = v[1] or '', cap = v[2] or '', slots = num(v[3]), tickets = num(v[4]), ticketed_ms = num(v[5]),
    off = v[6] == '1' or v[7] == '1', warm_job = v[8] or '', warm_ms = num(v[9]), unanswered = num(v[10])}
end

-- The idle sets are an index, derived here from claims, tickets and the lease; true where the worker is in one.
-- Nothing is written where nothing changes: a sign of life must work on a server that is full.
local function worker_index(name, facts)
  if facts.cap == '' then return false end
  local load = call('HLEN', K.claims(name)) + facts.tickets
  local idle = not facts.off and load < facts.slots and call('EXISTS', K.lease(name)) == 1
  local score = call('ZSCORE', K.idle(facts.cap), name)
  if idle then
    load = load + UNANSWERED * facts.unanswered
    if num(score or -1) ~= load then
      call('ZADD', K.idle(facts.cap), load, name)
      call('SADD', K.idle_caps(), facts.cap)
    end
  elseif score then
    call('ZREM', K.idle(facts.cap), name)
    if call('EXISTS', K.idle(facts.cap)) == 0 then call('SREM', K.idle_caps(), facts.cap) end
  end
  return idle
end

local function serves(name, cap, sig)
  return call('SISMEMBER', K.cap_sigs(cap), sig) == 1 and call('SISMEMBER', K.barred(name), sig) == 0
end

-- == tickets ========================================================================================================
local function ticket_count(name, facts, sig, delta)
  facts.tickets = facts.tickets + delta
  call('HINCRBY', K.worker(name), 'tickets', delta)
  if call('HINCRBY', K.calls(name), sig, delta) <= 0 then call('HDEL', K.calls(name), sig) end
  if call('HINCRBY', K.called(sig), name, delta) <= 0 then call('HDEL', K.called(sig), name) end
end

local function tickets_for(sig)
  local count = 0
  for _, tickets in ipairs(call('HVALS', K.called(sig))) do count = count + tickets end
  return count
end

-- Takes back all tickets of a worker; gives the signatures they were for.
local function tickets_withdraw(name, facts)
  local flat, sigs = call('HGETALL', K.calls(name)), {}
  for i = 1, #flat, 2 do
    ticket_count(name, facts, flat[i], -tonumber(flat[i + 1]))
    sigs[#sigs + 1] = flat[i]
  end
  return sigs
end

-- Tickets that were not answered within a tick are taken for lost.
local function tickets_expire(name, facts, tick_ms)
  if facts.tickets == 0 or NOW - facts.ticketed_ms <= tick_ms then return {} end
  facts.unanswered = math.min(facts.unanswered + 1, 9)
  call('HSET', K.worker(name), 'unanswered', facts.unanswered)
  return tickets_withdraw(name, facts)
end

-- Idle workers that serve the signature, those with the fewest claims and tickets first; no more than are needed.
local function idle_for(sig, caps, count)
  local found, barred = {}, call('SCARD', K.sig_barred(sig))
  for _, cap in ipairs(caps) do
    local flat = call('ZRANGE', K.idle(cap), 0, count + barred - 1, 'WITHSCORES')
    for i = 1, #flat, 2 do
      if barred == 0 or call('SISMEMBER', K.barred(flat[i]), sig) == 0 then
        found[#found + 1] = {name = flat[i], load = tonumber(flat[i + 1])}
      end
    end
  end
  table.sort(found, function(a, b) return a.load < b.load or a.load == b.load and a.name < b.name end)
  return found
end

-- Calls idle workers until there is a ticket for every claimable item of the signature.
local function cover(sig, out)
  local work = sig ~= '' and num(call('ZSCORE', K.work(), sig)) or 0
  if work == 0 then return end
  local caps = call('SINTER', K.sig_caps(sig), K.idle_caps())
  local missing = #caps > 0 and work - tickets_for(sig) or 0
  while missing > 0 do
    local idle = idle_for(sig, caps, missing)
    if #idle == 0 then return end
    for _, worker in ipairs(idle) do -- one ticket each to the least loaded; each turn changes the index, so this ends
      if missing == 0 or worker.load > idle[1].load then break end
      local facts = worker_read(worker.name)
      if worker_index(worker.name, facts) then
        ticket_count(worker.name, facts, sig, 1)
        call('HSET', K.worker(worker.name), 'ticketed_ms', NOW)
        worker_index(worker.name, facts)
        out[#out + 1] = worker.name
        missing = missing - 1
      end
    end
  end
end

local function cover_all(sigs, out)
  for _, sig in ipairs(sigs) do cover(sig, out) end
end

-- Places the job and calls workers for what it offers.
local function offer(job, out)
  place(job)
  cover(job.sig, out)
  cover(job.last_sig, out)
end

-- A worker has become able to claim: what it serves is covered until it has no free slot left.
local function look_for_work(name, out)
  local facts = worker_read(name)
  if not worker_index(name, facts) then return end
  local function try(sigs)
    for _, sig in ipairs(sigs) do
      if serves(name, facts.cap, sig) then cover(sig, out) end
      if not call('ZSCORE', K.idle(facts.cap), name) then return true end
    end
  end
  if not try(call('ZREVRANGE', K.work(), 0, 7)) and call('ZCARD', K.work()) > 8 then
    try(call('ZINTER', 2, K.work(), K.cap_sigs(facts.cap)))
  end
end

-- A worker that was called for one signature has taken an item of another (or nothing): whoever is under way for that one may
-- take its place, else another worker is called.
local function ticket_used(name, facts, taken, out)
  local sig = call('HEXISTS', K.calls(name), taken) == 1 and taken or call('HKEYS', K.calls(name))[1]
  if not sig then return end
  ticket_count(name, facts, sig, -1)
  worker_index(name, facts)
  if sig == taken then return end
  local called = call('HKEYS', K.called(taken))
  if #called > 0 and tickets_for(taken) > num(call('ZSCORE', K.work(), taken)) then
    for _, other in ipairs(called) do
      local its = worker_read(other)
      if serves(other, its.cap, sig) then
        ticket_count(other, its, taken, -1)
        ticket_count(other, its, sig, 1)
        return
      end
    end
  end
  cover(sig, out)
end

-- Jobs that wait for bytes of others, or for a worker more.  Those behind the first 32 wait for an event of their own: each has
-- something running or unfetched, else it would not be held.
local function offer_capped(out)
  for _, id in ipairs(call('ZRANGE', K.capped(), 0, 31)) do
    local job = job_read(id)
    if byte_room(job, 1) > 0 then offer(job, out) end
  end
end

local function offer_room(out)
  if room_made then offer_capped(out) end
end
