-- An item is done.  Idempotent: the same claim id again gets 'ok'; a claim that is not (or no longer) valid gets 'lost'.
-- ARGV  worker, incarnation, claim id, job, index, result, bytes, meta, engine ms
-- Writes item, result, job counters, meta (with PUBLISH), events; frees the claim and calls workers.
-- Gives  {'ok' | 'lost', worker...}
local name, inc, claim, id, index = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local facts = worker_read(name)
local job = job_read(id)
local item = item_read(id, index)
if item.s == 'done' and item.c == claim then
  if facts.inc == inc and facts.tickets > 0 then return {'ok', name} end -- the first answer, and its ticket, may have been lost
  return {'ok'}
end
if job.state ~= 'active' or item.s ~= 'running' or item.c ~= claim then return {'lost'} end
local bytes = num(ARGV[7])
call('HSET', K.result(id), index, ARGV[6])
stop_running(job, index, item)
item.s, item.b, item.e = 'done', bytes, job.settled > 0 and job.settled or nil
item_write(job, index, item)
job.done = job.done + 1
job.unfetched = job.unfetched + bytes
local largest = is_tile(job, index) and 'tiles_largest' or 'largest'
job[largest] = math.max(job[largest], bytes)
job_set(job, 'done', 'unfetched', largest)
tally_time('run', kind_of(job, index), num(ARGV[9]))
if facts.inc == inc then call('HINCRBY', K.worker(name), 'engine_ms', num(ARGV[9])) end
publish_meta(id, index, ARGV[8], call('HGET', K.job(id), 'ttl_s'))
event(id, 'done', index, claim, name)
local out = {'ok'}
if is_over(job) then end_job(job, 'done', '', out) else offer(job, out) end
offer_room(out)
if facts.inc == inc then look_for_work(name, out) end
return out
