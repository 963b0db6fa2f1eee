-- Which capabilities serve which signatures, as Python matched them.  Idempotent.
-- ARGV  number of signatures compared with all capabilities, those signatures, then pairs: signature, capability hash
-- Gives  {'ok', worker...}
local out, compared, touched = {'ok'}, tonumber(ARGV[1]), {}
for i = 2, compared + 1 do
  if call('HEXISTS', K.sigs(), ARGV[i]) == 1 then call('SADD', K.matched(), ARGV[i]) end
end
for i = compared + 2, #ARGV, 2 do
  local sig, cap = ARGV[i], ARGV[i + 1]
  if call('HEXISTS', K.sigs(), sig) == 1 and call('EXISTS', K.cap_workers(cap)) == 1 and call('SADD', K.sig_caps(sig), cap) == 1 then
    call('SADD', K.cap_sigs(cap), sig)
    touched[#touched + 1] = sig
  end
end
for _, sig in ipairs(touched) do cover(sig, out) end
if #touched > 0 then offer_capped(out) end
return out
