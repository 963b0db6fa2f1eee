-- What the owner of a job tells the table.  Idempotent.
-- ARGV  what, job, then:
--   own      owner, lease ms                  the owner lives, or another is the owner from now on because there is none
--   disown   owner                            the owner lets go
--   fetched  index, claim id                  the result is in the spool: no longer in flight
--   reopen   index, claim id, requirement, last requirement, max attempts, error, meta    the blob is gone or damaged: run the item again
--   unblock  index, feed                      the last stage may run
--   spool    host, spool, folder              where the owner keeps what it fetches, and where its files go in the end
--   settle                                    the owner has all it wants of an ended job: nothing is in flight any more
-- Gives  {'ok' | 'new' (own, reopen: match the job's signatures) | 'no', worker...}
local what, id = ARGV[1], ARGV[2]
local job = job_read(id)
if job.state == '' then return {'no'} end
local out = {'ok'}
local orders = {}

function orders.own()
  local owner = call('GET', K.owner(id))
  if owner and owner ~= ARGV[3] then return {'no'} end
  call('SET', K.owner(id), ARGV[3], 'PX', ARGV[4])
  if job.state ~= 'active' then return out end
  if unmatched(job) then out[1] = 'new' end
  if job.parked > 0 then
    job.parked = 0
    job_set(job, 'parked')
    event(id, 'job', '', '', '')
    offer(job, out)
  end
  return out
end

function orders.disown()
  if call('GET', K.owner(id)) == ARGV[3] then call('DEL', K.owner(id)) end
  return out
end

function orders.fetched()
  local item = item_read(id, ARGV[3])
  if item.c ~= ARGV[4] or item.f == 1 or item.s ~= 'done' then return out end
  job.unfetched = job.unfetched - unfetched_bytes(job, item)
  item.f = 1
  item_write(id, ARGV[3], item)
  job_set(job, 'unfetched')
  offer(job, out)
  return out
end

local function uncount(item) -- a done item is not done any more
  job.unfetched = job.unfetched - unfetched_bytes(job, item)
  job.done = job.done - 1
  job_set(job, 'done', 'unfetched')
  call('HDEL', K.result(id), ARGV[3])
  call('DEL', K.meta(id .. '-' .. ARGV[3]))
end

function orders.reopen()
  local item = item_read(id, ARGV[3])
  if item.r == ARGV[4] then -- done before; the answer may have been lost
    if job.state == 'active' and unmatched(job) then out[1] = 'new' end
    return out
  end
  if item.s ~= 'done' or item.c ~= ARGV[4] or job.state == 'cancelled' or job.state == 'failed' then return {'no'} end
  uncount(item)
  if job.state == 'done' then revive(job, ARGV[5], ARGV[6]) end
  if unmatched(job) then out[1] = 'new' end
  item.s, item.c, item.w, item.f, item.b, item.e, item.r, item.q = 'pending', '', '', nil, nil, nil, ARGV[4], NOW
  item.a.blob_missing = (item.a.blob_missing or 0) + 1
  if item.a.blob_missing >= num(ARGV[7]) then
    fail_item(job, ARGV[3], item, ARGV[4], '', 'blob_missing', ARGV[8], ARGV[9], out)
    return out
  end
  item_write(id, ARGV[3], item)
  tally('retry|blob_missing')
  requeue(job, ARGV[3])
  event(id, 'released', ARGV[3], ARGV[4], '')
  offer(job, out)
  return out
end

function orders.unblock()
  local item = item_read(id, ARGV[3])
  if item.s ~= 'blocked' then return out end
  if job.state ~= 'active' then return {'no'} end
  call('HSET', K.job(id), 'feed', ARGV[4])
  item.s, item.q = 'pending', NOW
  item_write(id, ARGV[3], item)
  requeue(job, ARGV[3])
  offer(job, out)
  return out
end

function orders.spool()
  call('HSET', K.job(id), 'spool_host', ARGV[3], 'spool', ARGV[4], 'out', ARGV[5])
  return out
end

function orders.settle()
  if job.state == 'active' then return {'no'} end
  if job.unfetched > 0 then settle(job) end
  return out
end

local answer = orders[what]()
offer_room(answer)
return answer
