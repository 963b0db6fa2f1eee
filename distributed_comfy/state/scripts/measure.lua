-- What metrics show of some jobs; changes nothing, and costs the same however many items a job has.
-- ARGV  job...
-- Gives  {name, number...}: 'items|kind|state' and 'jobs|state' of those that have not ended, 'held|cap' (items that a byte cap holds back
--        now), 'job limit' (the lowest cap of a job), 'unfetched'
local found = {}

local function add(name, by)
  if by > 0 then found[name] = (found[name] or 0) + by end
end

local function job_state(job) -- as `jobs list` shows it
  if job.parked > 0 then return 'parked' end
  if job.paused > 0 then return 'paused' end
  return (job.running > 0 or job.done > 0) and 'running' or 'pending'
end

-- Items of one state and kind that are counted elsewhere are taken out of what the job's counters say.
local function add_others(counts, kind, state, count)
  add('items|' .. kind .. '|' .. state, count)
  if counts[state] then counts[state] = counts[state] - count end
end

local function add_items(job, pending)
  local counts = {running = job.running, done = job.done, failed = job.failed, pending = pending + call('LLEN', K.finish(job.id)),
    blocked = num(call('HGET', K.job(job.id), 'blocked'))}
  local rest = job.total - job.tiles
  if job.tiles > 0 then
    for _, state in ipairs({'blocked', 'pending', 'waiting', 'running', 'done', 'failed'}) do
      add_others(counts, 'tile', state, num(call('HGET', K.job(job.id), 'tiles_' .. state)))
    end
  end
  for _, index in ipairs({job.prepare, job.last}) do
    if index ~= '' then
      add_others(counts, kind_of(job, index), item_read(job.id, index).s, 1)
      rest = rest - 1
    end
  end
  local kind = job.kind ~= '' and job.kind or 'generate'
  for state, count in pairs(counts) do
    add('items|' .. kind .. '|' .. state, count)
    rest = rest - count
  end
  add('items|' .. kind .. '|waiting', rest)
end

for _, id in ipairs(ARGV) do
  local job = job_read(id)
  add('unfetched', job.unfetched)
  if job.state == 'active' then
    add('jobs|' .. job_state(job), 1)
    local pending = call('LLEN', K.pending(id)) + call('LLEN', K.back(id))
    add_items(job, pending)
    found['job limit'] = math.min(found['job limit'] or job.cap, job.cap)
    if pending > 0 and job.paused == 0 and job.parked == 0 then
      local room, hold = byte_room(job, pending)
      if hold then add('held|' .. hold, pending - room) end
    end
  end
end

local answer = {}
for name, number in pairs(found) do
  answer[#answer + 1] = name
  answer[#answer + 1] = digits(number)
end
return answer
