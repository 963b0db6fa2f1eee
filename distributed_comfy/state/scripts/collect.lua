-- What the owner of a job tells the table.  Idempotent.
-- ARGV  what, job, then:
--   own      owner, lease ms, 'take' | ''     the owner lives (or another takes the job over)
--   fetched  index, claim id                  the result is in the spool: no longer in flight
--   reopen   index, claim id, requirement, last requirement, max attempts, error    the blob is gone or damaged: run the item again
--   unblock  index, feed                      the last stage may run
--   settle                                    the owner has all it wants of an ended job: nothing is in flight any more
-- Gives  {'ok' | 'new' (reopen: match the job's signatures) | 'no', worker...}
local what, id = ARGV[1], ARGV[2]
local job = job_read(id)
if job.state == '' then return {'no'} end
local out = {'ok'}

if what == 'own' then
  local owner = call('GET', K.owner(id))
  if owner and owner ~= ARGV[3] and ARGV[5] ~= 'take' then return {'no'} end
  if owner == ARGV[3] then call('PEXPIRE', K.owner(id), ARGV[4]) else call('SET', K.owner(id), ARGV[3], 'PX', ARGV[4]) end
  if job.parked > 0 and job.state == 'active' then
    job.parked = 0
    job_set(job, 'parked')
    event(id, 'job', '', '', '')
    offer(job, out)
  end
elseif what == 'fetched' then
  local item = item_read(id, ARGV[3])
  if item.c ~= ARGV[4] or item.f == 1 or item.s ~= 'done' then return {'ok'} end
  item.f = 1
  item_write(id, ARGV[3], item)
  job.unfetched = math.max(0, job.unfetched - num(item.b))
  job_set(job, 'unfetched')
  if call('ZSCORE', K.capped(), id) then offer(job, out) else place(job) end
  offer_capped(out)
elseif what == 'reopen' then
  local item = item_read(id, ARGV[3])
  if item.s ~= 'done' or item.c ~= ARGV[4] or job.state == 'cancelled' or job.state == 'failed' then return {'no'} end
  if item.f ~= 1 then job.unfetched = math.max(0, job.unfetched - num(item.b)) end
  call('HDEL', K.result(id), ARGV[3])
  item.s, item.c, item.w, item.f, item.b = 'pending', '', '', nil, nil
  item_write(id, ARGV[3], item)
  item.a.blob_missing = (item.a.blob_missing or 0) + 1
  item_write(id, ARGV[3], item)
  job.done = job.done - 1
  job_set(job, 'done', 'unfetched')
  if item.a.blob_missing >= num(ARGV[7]) and job.state == 'active' then
    fail_item(job, ARGV[3], item, ARGV[4], '', ARGV[8], '', out)
    return out
  end
  if job.state == 'done' and revive(job, ARGV[5], ARGV[6]) then out[1] = 'new' end
  requeue(job, ARGV[3])
  event(id, 'released', ARGV[3], ARGV[4], '')
  offer(job, out)
elseif what == 'unblock' then
  local item = item_read(id, ARGV[3])
  if item.s ~= 'blocked' then return {'ok'} end
  if job.state ~= 'active' then return {'no'} end
  call('HSET', K.job(id), 'feed', ARGV[4])
  item.s = 'pending'
  item_write(id, ARGV[3], item)
  call('RPUSH', K.finish(id), ARGV[3])
  offer(job, out)
elseif what == 'settle' then
  if job.state == 'active' then return {'no'} end
  job.unfetched = 0
  job_set(job, 'unfetched')
  book_bytes(job)
  offer_capped(out)
end
return out
