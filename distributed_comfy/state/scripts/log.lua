-- Lines of a worker's log.  Idempotent: the last line of a batch carries its name.
-- ARGV  worker, batch, lines that the stream may have (roughly), ms that it is kept, then source, level and text of each line
-- Gives  {'ok' | 'known'}
local key, batch = K.log(ARGV[1]), ARGV[2]
local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'b' and last[2][i + 1] == batch then return {'known'} end
  end
end
for i = 5, #ARGV, 3 do
  local fields = {'s', ARGV[i], 'l', ARGV[i + 1], 'm', ARGV[i + 2]}
  if i + 3 > #ARGV then fields[7], fields[8] = 'b', batch end
  call('XADD', key, 'MAXLEN', '~', ARGV[3], '*', unpack(fields))
end
call('PEXPIRE', key, ARGV[4])
return {'ok'}
