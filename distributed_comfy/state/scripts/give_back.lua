-- A worker cannot finish an item.  Idempotent: a claim that is not (or no longer) the item's changes nothing.
-- ARGV  worker, incarnation, claim id, job, index, how, error, class, max attempts, first wait ms, meta
--       how: 'release' (uses up no attempt), 'retry' (class counts), 'lacks' (this worker is barred from the job's signature),
--       'elsewhere' (as 'lacks' while another one may run it, else as 'retry'), 'refused' (as 'lacks' where the submitter's ComfyUI has
--       accepted the prompt, else as 'final'), 'final'.  A job whose submitter runs items itself never fails because all are barred.
-- Gives  {'ok' | 'failed' | 'lost', worker...}
local name, inc, claim, id, index, how = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local job = job_read(id)
local item = item_read(id, index)
if job.state ~= 'active' or item.s ~= 'running' or item.c ~= claim then return {'lost'} end

-- A job that must avoid a worker gets a signature of its own, so that nobody else's claims are touched.
local function own_signature(field)
  local plain = job[field]
  if string.sub(plain, -#id - 1) == '!' .. id then return plain end
  local own = plain .. '!' .. id
  call('SUNIONSTORE', K.sig_caps(own), K.sig_caps(plain))
  for _, cap in ipairs(call('SMEMBERS', K.sig_caps(own))) do call('SADD', K.cap_sigs(cap), own) end
  call('HSET', K.sigs(), own, call('HGET', K.sigs(), plain))
  call('HINCRBY', K.sig_refs(), own, 1)
  if call('SISMEMBER', K.matched(), plain) == 1 then call('SADD', K.matched(), own) end
  job.state = 'moving' -- takes the job out of the index under its old signature
  place(job)
  job.state = 'active'
  release_signature(plain)
  job[field] = own
  job_set(job, field)
  return own
end

local function bar(field)
  local own = own_signature(field)
  call('SADD', K.barred(name), own)
  call('SADD', K.sig_barred(own), name)
end

local function others_may(sig) -- somebody else is left for it
  if job.outer == 'runs' then return true end
  for _, cap in ipairs(call('SMEMBERS', K.sig_caps(sig))) do
    for _, other in ipairs(call('SMEMBERS', K.cap_workers(cap))) do
      if other ~= name and call('SISMEMBER', K.barred(other), sig) == 0 then return true end
    end
  end
  return false
end

local out = {'ok'}
local field = index == job.last and 'last_sig' or 'sig'
local left = others_may(job[field])
if how == 'elsewhere' then how = left and 'lacks' or 'retry' end
if how == 'refused' then how = job.outer ~= '' and 'lacks' or 'final' end
local class, wait_ms, goes_back = '', 0, how ~= 'final'
if how == 'retry' then class, wait_ms = ARGV[8], num(ARGV[10]) end
if how == 'lacks' then
  bar(field)
  goes_back = left
end
if goes_back then
  goes_back = give_back(job, index, item, class, num(ARGV[9]), wait_ms, how == 'lacks' and ARGV[8] or nil)
else
  stop_running(job, index, item)
end
if goes_back then
  offer(job, out)
else
  out[1] = 'failed'
  if how == 'lacks' then job.spare = '' end -- nobody could run the others either
  fail_item(job, index, item, claim, name, ARGV[8], ARGV[7], ARGV[11], out)
end
offer_room(out)
if call('HGET', K.worker(name), 'inc') == inc then look_for_work(name, out) end
return out
