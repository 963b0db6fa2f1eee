-- The small job with which `doctor` tries one worker: only that one may take it, and nothing stays of it.  Idempotent.
-- ARGV  'pin', signature of an active job, worker    this worker alone serves the signature, and is called
--       'forget', job                                an ended job goes at once, with all its keys
-- Gives  {'ok' | 'unknown' (no such signature, worker or job) | 'active' (the job has not ended), worker...}
local what, out = ARGV[1], {'ok'}

local function pin(sig, name)
  local cap = worker_read(name).cap
  if cap == '' or call('HEXISTS', K.sigs(), sig) == 0 then return {'unknown'} end
  for _, other in ipairs(call('SMEMBERS', K.cap_workers(cap))) do
    if other ~= name then
      call('SADD', K.barred(other), sig)
      call('SADD', K.sig_barred(sig), other)
    end
  end
  call('SADD', K.sig_caps(sig), cap)
  call('SADD', K.cap_sigs(cap), sig)
  cover(sig, out)
  return out
end

local function forget(id)
  local job = job_read(id)
  if job.state == '' then return {'unknown'} end
  if job.state == 'active' then return {'active'} end
  settle(job)
  for _, index in ipairs(call('HKEYS', K.spec(id))) do call('DEL', K.meta(id .. '-' .. index)) end
  for _, name in ipairs(JOB_KEYS) do call('DEL', K[name](id)) end
  call('DEL', K.owner(id))
  call('ZREM', K.jobs(), id)
  call('ZREM', K.ended(), id)
  offer_room(out)
  return out
end

if what == 'pin' then return pin(ARGV[2], ARGV[3]) end
return forget(ARGV[2])
