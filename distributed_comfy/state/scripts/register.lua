-- A worker becomes able to claim: at start, after it was declared dead, and when its capabilities changed.  Idempotent.
-- ARGV  worker, incarnation, capability hash, slots, lease ms, facts (JSON), drained ('' = as before), capability
-- Gives  {'ok', worker...} | {'taken', ms until the other's lease ends}
local name, inc, cap, slots, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local facts = worker_read(name)
local holder = call('GET', K.lease(name))
if holder and holder ~= inc then return {'taken', tostring(call('PTTL', K.lease(name)))} end
local out = {'ok'}
if facts.inc ~= inc then -- another life of this name: what it held goes back
  for _, where in ipairs(call('HVALS', K.claims(name))) do
    local id, index = halves(where)
    local job, item = job_read(id), item_read(id, index)
    if item.s == 'running' and item.w == name then
      give_back(job, index, item, '', 0, 0)
      offer(job, out)
    end
  end
  call('DEL', K.claims(name))
  tickets_used(name, facts, facts.tickets)
  call('HSET', K.worker(name), 'inc', inc, 'tickets', 0, 'since_ms', NOW, 'warm_job', '', 'drained', 0)
end
if facts.cap ~= cap or facts.inc ~= inc then
  if facts.cap ~= '' then
    call('SREM', K.idle(facts.cap), name)
    call('SREM', K.cap_workers(facts.cap), name)
    call('HINCRBY', K.ticketed(), facts.cap, 0 - num(call('HGET', K.worker(name), 'tickets'))) -- Redis takes no "-0"
  end
  call('HINCRBY', K.ticketed(), cap, num(call('HGET', K.worker(name), 'tickets')))
  call('DEL', K.barred(name))
end
call('HSET', K.caps(), cap, ARGV[8])
call('SADD', K.workers(), name)
call('SADD', K.cap_workers(cap), name)
call('DEL', K.starting(name))
call('SET', K.lease(name), inc, 'PX', lease_ms)
call('HSET', K.worker(name), 'cap', cap, 'slots', slots, 'facts', ARGV[6], 'down', 0)
if ARGV[7] ~= '' then call('HSET', K.worker(name), 'drained', ARGV[7]) end
call_self(name, worker_read(name), out)
return out
