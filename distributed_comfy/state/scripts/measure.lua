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

local function add_items(job, pending)
  local counts = {running = job.running, done = job.done, failed = job.failed, pending = pending}
  local rest = job.total - job.running - job.done - job.failed - pending
  if job.last ~= '' then
    local state = item_read(job.id, job.last).s
    add('items|last|' .. state, 1)
    if state == 'running' or state == 'done' or state == 'failed' then counts[state] = counts[state] - 1 else rest = rest - 1 end
  end
  for state, count in pairs(counts) do add('items|' .. kind_of(job, nil) .. '|' .. state, count) end
  add('items|' .. kind_of(job) .. '|waiting', rest)
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
