-- Lines of a worker's log.  Idempotent: the last line of a batch carries its name.
-- Bounded here, because any worker may call this with any numbers: the most that the settings allow, and lines as `tasks.log_buffer` cuts them.
-- ARGV  worker, batch, lines that the stream may have (roughly), ms that it is kept, then source, level and text of each line
-- Gives  {'ok' | 'known'}
local MOST_LINES, MOST_MS, LINE_BYTES, WORD_BYTES = 20000, 604800000, 8192, 64
local key, batch = K.log(ARGV[1]), ARGV[2]:sub(1, WORD_BYTES)
local keep_lines = math.max(1, math.min(num(ARGV[3]), MOST_LINES))
local keep_ms = math.max(1, math.min(num(ARGV[4]), MOST_MS))
local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'b' and last[2][i + 1] == batch then return {'known'} end
  end
end
for i = 5, #ARGV, 3 do
  local fields = {'s', ARGV[i]:sub(1, WORD_BYTES), 'l', ARGV[i + 1]:sub(1, WORD_BYTES), 'm', ARGV[i + 2]:sub(1, LINE_BYTES)}
  if i + 3 > #ARGV then fields[7], fields[8] = 'b', batch end
  call('XADD', key, 'MAXLEN', '~', keep_lines, '*', unpack(fields))
end
call('PEXPIRE', key, keep_ms)
return {'ok'}
