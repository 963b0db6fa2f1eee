-- A worker becomes able to claim: at start, after it was declared dead, and when its capabilities changed.  Idempotent.
-- ARGV  worker, incarnation, capability hash ('' for a guest, which is called for nothing), slots, lease ms, facts (JSON), capability,
--       max attempts, lost-worker error, meta
-- Gives  {'ok', worker...} | {'taken', ms until the other's lease ends}
local name, inc, cap, slots, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local facts = worker_read(name)
local holder = call('GET', K.lease(name))
if holder and holder ~= inc then return {'taken', tostring(call('PTTL', K.lease(name)))} end
local out = {'ok'}
if facts.inc ~= inc then -- another life of this name, which ended without a word
  if facts.inc ~= '' and call('HGET', K.worker(name), 'left') ~= '1' then tally('lost workers') end
  drop_claims(name, 'worker_lost', num(ARGV[8]), ARGV[9], ARGV[10], out)
  call('HSET', K.worker(name), 'inc', inc, 'since_ms', NOW, 'warm_job', '', 'drained', 0, 'unanswered', 0)
end
local withdrawn = {}
if facts.inc ~= inc or facts.cap ~= cap then withdrawn = tickets_withdraw(name, worker_read(name)) end
if facts.cap ~= cap then leave_capability(name, facts) end
call('SREM', cap == '' and K.workers() or K.guests(), name)
call('SADD', cap == '' and K.guests() or K.workers(), name)
if cap ~= '' then
  call('HSET', K.caps(), cap, ARGV[7])
  call('SADD', K.cap_workers(cap), name)
end
call('DEL', K.starting(name))
call('SET', K.lease(name), inc, 'PX', lease_ms)
call('HSET', K.worker(name), 'cap', cap, 'slots', slots, 'facts', ARGV[6], 'down', 0, 'left', 0)
look_for_work(name, out)
cover_all(withdrawn, out)
offer_capped(out)
return out
