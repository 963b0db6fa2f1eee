-- Which capabilities serve which signatures, as Python matched them.  Idempotent.
-- ARGV  pairs: signature, capability hash
-- Gives  {'ok', worker...}
local out = {'ok'}
for i = 1, #ARGV, 2 do
  local sig, cap = ARGV[i], ARGV[i + 1]
  if call('HEXISTS', K.sigs(), sig) == 1 and call('SCARD', K.cap_workers(cap)) > 0 and call('SADD', K.sig_caps(sig), cap) == 1 then
    call('SADD', K.cap_sigs(cap), sig)
    for _, name in ipairs(call('SMEMBERS', K.cap_workers(cap))) do call_self(name, worker_read(name), out) end
  end
end
return out
