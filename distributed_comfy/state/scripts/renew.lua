-- A worker lives.  Idempotent.  Only PEXPIRE in the common case, so that it works at maxmemory.
-- ARGV  worker, incarnation, lease ms, tick ms, then the claim ids it holds (those it is just asking for included)
-- Items that the table thinks it runs but that it does not hold go back.
-- Gives  {'ok' | 'dead', number of lost claims, lost claim..., worker...}
local name, inc = ARGV[1], ARGV[2]
local facts = worker_read(name)
if facts.inc ~= inc then return {'dead', 0} end
local holder = call('GET', K.lease(name))
if holder and holder ~= inc then return {'dead', 0} end
if call('PEXPIRE', K.lease(name), ARGV[3]) == 0 then call('SET', K.lease(name), inc, 'PX', ARGV[3]) end -- expired, but not yet reaped
local held = {}
for i = 5, #ARGV do held[ARGV[i]] = true end
local out, lost, known = {}, {}, {}
local flat = call('HGETALL', K.claims(name))
for i = 1, #flat, 2 do
  known[flat[i]] = true
  if not held[flat[i]] then
    local id, index = halves(flat[i + 1])
    local job, item = job_read(id), item_read(id, index)
    if item.s == 'running' and item.c == flat[i] then
      give_back(job, index, item, '', 0, 0)
      offer(job, out)
    end
    call('HDEL', K.claims(name), flat[i])
  end
end
for i = 5, #ARGV do if not known[ARGV[i]] then lost[#lost + 1] = ARGV[i] end end
facts = worker_read(name)
if facts.tickets > 0 and NOW - facts.ticketed_ms > num(ARGV[4]) then tickets_used(name, facts, facts.tickets) end
call_self(name, facts, out)
local answer = {'ok', #lost}
for _, claim in ipairs(lost) do answer[#answer + 1] = claim end
for _, worker in ipairs(out) do answer[#answer + 1] = worker end
return answer
