-- A worker takes the next item.  Idempotent: a claim id that is known gets the same answer.
-- ARGV  worker, incarnation, claim id, warm slice ms
-- Reads, per signature the worker serves:
--   q_back     ZSET job -> number          items given back come first
--   q_finish   ZSET job -> number          then last stages
--   q_levels   ZSET priority               then the highest priority,
--   q_submitters ZSET submitter -> score   in it the submitter with the fewest running items, least recently served,
--   q_jobs     ZSET job -> score           of theirs the job with the fewest running items, the oldest;
-- at equal counts the job that this worker served last wins for one warm slice, unless another submitter has not been served that long.
-- Gives  {'item', job, index, packed spec, attempts} | {'none'} | {'dead'}
local name, inc, claim, slice = ARGV[1], ARGV[2], ARGV[3], num(ARGV[4])
local facts = worker_read(name)
if facts.inc ~= inc then return {'dead'} end

local function answer(id, index)
  local attempts = 1
  for _, count in pairs(item_read(id, index).a) do attempts = attempts + count end
  return {'item', id, index, call('HGET', K.spec(id), index), tostring(attempts)}
end

local known = call('HGET', K.claims(name), claim)
if known then return answer(halves(known)) end

tickets_used(name, facts, 1)
if facts.drained == 1 or call('HLEN', K.claims(name)) >= facts.slots then
  worker_index(name, facts)
  return {'none'}
end

local sigs = signatures_of(name, facts)

local function oldest(kind) -- back or finish: the oldest job over all signatures
  local best, best_seq
  for _, sig in ipairs(sigs) do
    local top = call('ZRANGE', K['q_' .. kind](sig), 0, 0, 'WITHSCORES')
    if top[1] and (not best or tonumber(top[2]) < best_seq) then best, best_seq = top[1], tonumber(top[2]) end
  end
  return best
end

local function level_and_signatures()
  local level, at = nil, {}
  for _, sig in ipairs(sigs) do
    local top = call('ZREVRANGE', K.q_levels(sig), 0, 0)[1]
    if top then
      local value = tonumber(top)
      if not level or value > level then level, at = value, {} end
      if value == level then at[#at + 1] = sig end
    end
  end
  return level, at
end

local function fairest_submitter(level, at)
  local best, best_score
  for _, sig in ipairs(at) do
    local top = call('ZRANGE', K.q_submitters(sig, level), 0, 0, 'WITHSCORES')
    if top[1] and (not best or tonumber(top[2]) < best_score) then best, best_score = top[1], tonumber(top[2]) end
  end
  return best, best_score
end

local function fairest_job(level, at, submitter, not_this)
  local best, best_score
  for _, sig in ipairs(at) do
    local top = call('ZRANGE', K.q_jobs(sig, level, submitter), 0, 1, 'WITHSCORES')
    for i = 1, #top, 2 do
      if top[i] ~= not_this and (not best or tonumber(top[i + 1]) < best_score) then best, best_score = top[i], tonumber(top[i + 1]) end
    end
  end
  return best, best_score
end

local function contains(list, value)
  for _, entry in ipairs(list) do if entry == value then return true end end
  return false
end

local function tied(score, other) return math.floor(score / STEP) == math.floor(other / STEP) end

-- The job this worker served last, where it is still on offer at this level: id, submitter, its score, its submitter's score.
local function warm_job(level, at)
  if facts.warm_job == '' then return nil end
  local v = call('HMGET', K.job(facts.warm_job), 'place', 'submitter')
  if not v[1] or v[1] == '' then return nil end
  local sig, its_level = halves(v[1])
  if tonumber(its_level) ~= level or not contains(at, sig) then return nil end
  return {id = facts.warm_job, submitter = v[2], score = tonumber(call('ZSCORE', K.q_jobs(sig, its_level, v[2]), facts.warm_job)),
    submitter_score = tonumber(call('ZSCORE', K.q_submitters(sig, its_level), v[2]))}
end

local function choose_pending()
  local level, at = level_and_signatures()
  if not level then return nil end
  local submitter, submitter_sc = fairest_submitter(level, at)
  local warm = warm_job(level, at)
  local fresh = warm and NOW - facts.warm_ms < slice
  if fresh and tied(warm.submitter_score, submitter_sc) and NOW - num(call('HGET', K.submitter(submitter), 'served_ms')) < slice then
    submitter = warm.submitter
  end
  local job, score = fairest_job(level, at, submitter, nil)
  if warm and warm.submitter == submitter and tied(warm.score, score) then
    if fresh then return warm.id end
    local other, other_score = fairest_job(level, at, submitter, warm.id)
    if other and tied(other_score, score) then return other end
  end
  return job
end

for _ = 1, 64 do -- each turn takes one job that has reached the cap on all bytes out of the index
  local list = 'back'
  local id = oldest('back')
  if not id then id, list = oldest('finish'), 'finish' end
  if not id then id, list = choose_pending(), 'pending' end
  if not id then break end
  local job = job_read(id)
  if list == 'finish' or not at_byte_cap(job) then
    local index = call('LPOP', K[list](id))
    local item = item_read(id, index)
    item.s, item.c, item.w = 'running', claim, name
    item_write(id, index, item)
    call('HSET', K.runs(id), index, claim .. '|' .. name)
    call('HSET', K.claims(name), claim, id .. '|' .. index)
    job.running = job.running + 1
    job.level = job.base
    job_set(job, 'running', 'level')
    call('ZREM', K.aging(), id)
    place(job)
    submitter_count(job.submitter, 1, true)
    if facts.warm_job ~= id then call('HSET', K.worker(name), 'warm_job', id, 'warm_ms', NOW) end
    worker_index(name, facts)
    event(id, 'claimed', index, claim, name)
    return answer(id, index)
  end
  place(job)
end
worker_index(name, facts)
return {'none'}
