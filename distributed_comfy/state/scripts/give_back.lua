-- A worker cannot finish an item.  Idempotent: a claim that is not (or no longer) the item's changes nothing.
-- ARGV  worker, incarnation, claim id, job, index, how, error, class, max attempts, first wait ms, meta
--       how: 'release' (uses up no attempt), 'retry' (class counts), 'lacks' (this worker is barred from the job's signature), 'final'
-- Gives  {'ok' | 'failed' | 'lost', worker...}
local name, inc, claim, id, index, how = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local job = job_read(id)
local item = item_read(id, index)
local facts = worker_read(name)
if job.state ~= 'active' or item.s ~= 'running' or item.c ~= claim then
  local out = {'lost'}
  if facts.inc == inc then
    call('HDEL', K.claims(name), claim)
    call_self(name, facts, out)
  end
  return out
end

-- A job that must avoid a worker gets a signature of its own, so that nobody else's claims are touched.
local function bar(field)
  local own = string.sub(job[field], -#id - 1) == '!' .. id and job[field] or job[field] .. '!' .. id
  if own ~= job[field] then
    call('SUNIONSTORE', K.sig_caps(own), K.sig_caps(job[field]))
    call('HSET', K.sigs(), own, call('HGET', K.sigs(), job[field]))
    for _, cap in ipairs(call('SMEMBERS', K.sig_caps(own))) do call('SADD', K.cap_sigs(cap), own) end
    call('HINCRBY', K.sig_refs(), own, 1)
    local old = {state = 'moving', paused = 0, parked = 0}
    for key, value in pairs(job) do if old[key] == nil then old[key] = value end end
    place(old) -- leaves the index under its old signature
    job.place, job.inflight = old.place, old.inflight
    release_signature(job[field])
    job[field] = own
    job_set(job, field)
  end
  call('SADD', K.barred(name), own)
  for _, cap in ipairs(call('SMEMBERS', K.sig_caps(own))) do
    for _, other in ipairs(call('SMEMBERS', K.cap_workers(cap))) do
      if call('SISMEMBER', K.barred(other), own) == 0 then return true end
    end
  end
  return false
end

local out = {'ok'}
if how == 'final' then
  stop_running(job, index, item)
  fail_item(job, index, item, claim, name, ARGV[7], ARGV[11], out)
  out[1] = 'failed'
else
  local able = how ~= 'lacks' or bar(index == job.last and 'last_sig' or 'sig')
  local class = how == 'retry' and ARGV[8] or ''
  local wait = how == 'retry' and num(ARGV[10]) or 0
  if able and give_back(job, index, item, class, num(ARGV[9]), wait) then
    offer(job, out)
  else
    if able then out[1] = 'failed' else stop_running(job, index, item); out[1] = 'failed' end
    fail_item(job, index, item, claim, name, ARGV[7], ARGV[11], out)
  end
end
facts = worker_read(name)
if facts.inc == inc then call_self(name, facts, out) end
return out
