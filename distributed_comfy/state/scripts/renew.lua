-- A worker lives.  Idempotent.  Only PEXPIRE in the common case, so that it works at maxmemory.
-- ARGV  worker, incarnation, lease ms, tick ms, this call's own id, "free|total" bytes of its device or '', then the claim ids it holds
--       (those it is just asking for included)
-- An item that the table thinks it runs goes back when two calls in a row do not hold it: one call may have been written down
-- before the claim was asked for and be read after it, and the same call may come twice.
-- Gives  {'ok' | 'dead', number of lost claims, lost claim..., worker...}
local name, inc, this_call = ARGV[1], ARGV[2], ARGV[5]
local facts = worker_read(name)
local holder = call('GET', K.lease(name))
if facts.inc ~= inc or holder and holder ~= inc then return {'dead', '0'} end
if call('PEXPIRE', K.lease(name), ARGV[3]) == 0 then call('SET', K.lease(name), inc, 'PX', ARGV[3]) end -- expired, but not yet reaped
if ARGV[6] ~= '' then redis.pcall('SET', K.memory(name), ARGV[6], 'PX', ARGV[3]) end -- refused where the server is full, which is no matter
local held = {}
for i = 7, #ARGV do held[ARGV[i]] = true end
local out, lost, known = {}, {}, {}
local unheld = call('EXISTS', K.unheld(name)) == 1

local function not_held(claim, where)
  local missed_by = call('HGET', K.unheld(name), claim)
  if not missed_by then
    call('HSET', K.unheld(name), claim, this_call)
  elseif missed_by ~= this_call then
    local id, index = halves(where)
    local job = job_read(id)
    give_back(job, index, item_read(id, index), '', 0, 0)
    offer(job, out)
  end
end

local flat = call('HGETALL', K.claims(name))
for i = 1, #flat, 2 do
  known[flat[i]] = true
  if not held[flat[i]] then
    not_held(flat[i], flat[i + 1])
  elseif unheld then
    call('HDEL', K.unheld(name), flat[i])
  end
end
for i = 7, #ARGV do if not known[ARGV[i]] then lost[#lost + 1] = ARGV[i] end end
offer_room(out)
facts = worker_read(name)
cover_all(tickets_expire(name, facts, num(ARGV[4])), out)
look_for_work(name, out)
local answer = {'ok', tostring(#lost)}
for _, claim in ipairs(lost) do answer[#answer + 1] = claim end
for _, worker in ipairs(out) do answer[#answer + 1] = worker end
return answer
