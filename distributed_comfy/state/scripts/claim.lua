-- A worker takes the next item.  Idempotent: a claim id that is known gets the same answer.
-- ARGV  worker, incarnation, claim id, warm slice ms, the one job that a guest takes from ('' for all others), the items of it that the
--       guest leaves to workers (JSON; '' for none)
-- Order: given back first (back_heads), then last stages (finish_heads), then the highest priority (levels), in it the submitter with
-- the fewest running items, least recently served (level), of theirs the job with the fewest running items, then the oldest (heads,
-- queue); at equal counts the job that this worker served last wins for one warm slice, unless another submitter has not been served
-- that long.  A signature's head is its first job's score, so the worker's best signature is the first one of a ZSET that it serves.
-- A guest serves no signature; it takes of its job what was given back, then what never ran, under the same caps, and no last stage.
-- Gives  {'item', job, index, packed spec, attempts, worker...} | {'none', worker...} | {'dead'}
local name, inc, claim, slice, only = ARGV[1], ARGV[2], ARGV[3], num(ARGV[4]), ARGV[5] or ''
local leaves = {}
if (ARGV[6] or '') ~= '' then
  for _, index in ipairs(cjson.decode(ARGV[6])) do leaves[tostring(index)] = true end
end
local facts = worker_read(name)
if facts.inc ~= inc then return {'dead'} end

local function answer(id, index)
  local attempts = 1
  for _, count in pairs(item_read(id, index).a) do attempts = attempts + count end
  return {'item', id, index, call('HGET', K.spec(id), index), tostring(attempts)}
end

local known = call('HGET', K.claims(name), claim)
if known then return answer(halves(known)) end

local function first_served(heads, not_this)
  local function first_of(flat)
    for i = 1, #flat, 2 do
      if flat[i] ~= not_this and serves(name, facts.cap, flat[i]) then return flat[i], tonumber(flat[i + 1]) end
    end
  end
  local flat = call('ZRANGE', heads, 0, 7, 'WITHSCORES')
  local sig, score = first_of(flat)
  if sig or #flat < 16 then return sig, score end
  return first_of(call('ZINTER', 2, heads, K.cap_sigs(facts.cap), 'WEIGHTS', 1, 0, 'WITHSCORES'))
end

local function tied(score, other) return math.floor(score / STEP) == math.floor(other / STEP) end

-- The job this worker served last, where it is still on offer at this level: id, submitter, its score, its submitter's score.
local function warm_job(level)
  if facts.warm_job == '' then return nil end
  local v = call('HMGET', K.job(facts.warm_job), 'place', 'submitter')
  if not v[1] or v[1] == '' then return nil end
  local sig, its_level = halves(v[1])
  if its_level ~= level or not serves(name, facts.cap, sig) then return nil end
  return {id = facts.warm_job, submitter = v[2], score = tonumber(call('ZSCORE', K.queue(level, sig, v[2]), facts.warm_job)),
    submitter_score = tonumber(call('ZSCORE', K.level(level), v[2])), fresh = NOW - facts.warm_ms < slice}
end

-- The first submitter of a level that `wanted(name, score)` and that has something for this worker, and the signature it is of.
local function find_submitter(level, wanted)
  local from = 0
  repeat
    local flat = call('ZRANGE', K.level(level), from, from + 15, 'WITHSCORES')
    for i = 1, #flat, 2 do
      if wanted(flat[i], tonumber(flat[i + 1])) then
        local sig, score = first_served(K.heads(level, flat[i]))
        if sig then return flat[i], tonumber(flat[i + 1]), sig, score end
      end
    end
    from = from + 16
  until #flat < 32
end

local function next_job(level, submitter, sig, job) -- the best after the best one, with its score
  local second = call('ZRANGE', K.queue(level, sig, submitter), 1, 1, 'WITHSCORES')
  local other_sig, other_score = first_served(K.heads(level, submitter), sig)
  if second[1] and (not other_sig or tonumber(second[2]) < other_score) then return second[1], tonumber(second[2]) end
  if other_sig then return call('ZRANGE', K.queue(level, other_sig, submitter), 0, 0)[1], other_score end
  return job, nil
end

local function choose_at(level)
  local submitter, submitter_sc, sig, score = find_submitter(level, function() return true end)
  if not submitter then return nil end
  local warm = warm_job(level)
  if warm and warm.fresh and warm.submitter ~= submitter and tied(warm.submitter_score, submitter_sc) then
    local function waits_or_is_warm(other, its_score)
      return tied(its_score, submitter_sc)
        and (other == warm.submitter or NOW - num(call('HGET', K.submitter(other), 'served_ms')) >= slice)
    end
    submitter, submitter_sc, sig, score = find_submitter(level, waits_or_is_warm)
  end
  local job = call('ZRANGE', K.queue(level, sig, submitter), 0, 0)[1]
  if warm and warm.submitter == submitter and tied(warm.score, score) then
    if warm.fresh then return warm.id end
    if job == warm.id then
      local other, other_score = next_job(level, submitter, sig, job)
      if other_score and tied(other_score, score) then return other end
    end
  end
  return job
end

local function choose() -- a job, and which of its lists
  for _, kind in ipairs({'back', 'finish'}) do
    local sig = first_served(K[kind .. '_heads']())
    if sig then return call('ZRANGE', K[kind .. '_jobs'](sig), 0, 0)[1], kind end
  end
  for _, level in ipairs(call('ZREVRANGE', K.levels(), 0, -1)) do
    local id = choose_at(level)
    if id then return id, 'pending' end
  end
end

local function take(job, list, index) -- the list's first one, where no other is named
  local id = job.id
  if index then call('LREM', K[list](id), 1, index) else index = call('LPOP', K[list](id)) end
  local item = item_read(id, index)
  tally_time('wait', kind_of(job, index), NOW - (item.q or job.created_ms))
  item.s, item.c, item.w, item.q = 'running', claim, name, nil
  item_write(job, index, item)
  call('HSET', K.runs(id), index, claim .. '|' .. name)
  call('HSET', K.claims(name), claim, id .. '|' .. index)
  job.running = job.running + 1
  job.level = job.base
  job_set(job, 'running', 'level')
  call('ZREM', K.aging(), id)
  place(job)
  submitter_count(job.submitter, 1, true)
  if facts.warm_job ~= id then call('HSET', K.worker(name), 'warm_job', id, 'warm_ms', NOW) end
  event(id, 'claimed', index, claim, name)
  return answer(id, index), list == 'finish' and job.last_sig or job.sig
end

local function first_not_left(list)
  local from = 0
  repeat
    local some = call('LRANGE', list, from, from + 63)
    for _, index in ipairs(some) do
      if not leaves[index] then return index end
    end
    from = from + 64
  until #some < 64
end

local function claim_of(id)
  local job = job_read(id)
  if job.state ~= 'active' or job.paused > 0 or job.parked > 0 or byte_room(job, 1) == 0 then return {'none'}, '' end
  for _, list in ipairs({'back', 'pending'}) do
    local index = first_not_left(K[list](id))
    if index then return take(job, list, index) end
  end
  return {'none'}, ''
end

local function claim_next() -- the answer, and the signature of what was taken
  if facts.off or call('HLEN', K.claims(name)) >= facts.slots then return {'none'}, '' end
  if only ~= '' then return claim_of(only) end
  for _ = 1, 16 do -- each turn takes one job that the cap on all bytes holds out of the index
    local id, list = choose()
    if not id then break end
    local job = job_read(id)
    if list == 'finish' or byte_room(job, 1) > 0 then return take(job, list) end
    place(job)
  end
  return {'none'}, ''
end

if facts.unanswered > 0 then
  facts.unanswered = 0
  call('HSET', K.worker(name), 'unanswered', 0)
end
local out, taken = claim_next()
ticket_used(name, facts, taken, out)
worker_index(name, worker_read(name))
return out
