-- A worker tells how it is.  Idempotent.
-- ARGV  worker, incarnation, status (JSON), ms until it vanishes, ms that the worker's log is kept
-- Gives  {'ok' | 'taken' (another live worker has the name) | 'left' (this one has said that it ends), now in ms, '1' where it is drained}
local name, inc = ARGV[1], ARGV[2]
local holder = call('GET', K.lease(name))
local facts = call('HMGET', K.worker(name), 'inc', 'drained', 'left')
local known = facts[1] == inc
local drained = known and facts[2] == '1' and '1' or '0'
if holder and holder ~= inc then return {'taken', digits(NOW), drained} end
if known and facts[3] == '1' then return {'left', digits(NOW), drained} end
local MOST_MS = 604800000 -- as in log.lua
redis.pcall('SET', K.status(name), ARGV[3], 'PX', math.max(1, math.min(num(ARGV[4]), MOST_MS))) -- refused where the server is full, which is no matter
call('PUBLISH', K.statuses(name), ARGV[3])
call('PEXPIRE', K.log(name), math.max(1, math.min(num(ARGV[5]), MOST_MS)))
return {'ok', digits(NOW), drained}
