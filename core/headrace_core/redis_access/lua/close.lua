-- (time, reason) → how many groups were cancelled. No lease, claim or settlement succeeds after this; idempotent.
-- Trained groups are deleted only if the job's status says that it has ended: a job whose training is done may still be
-- paused, or lose its controller, and its next learner may need them to recompute the last state. A damaged job can be
-- closed, too.
local cancelled = 0
for _, set in ipairs({ LEASES, QUEUED, CLAIMED }) do
  for _, group in ipairs(redis.call('ZRANGE', set, 0, -1)) do
    if redis.call('HEXISTS', GROUP .. group, 'state') == 1 then -- else the set's member is damaged and not a group
      redis.call('HSET', GROUP .. group, 'token', '')
      move(group, 'cancelled', ARGV[2])
      forget(group)
      cancelled = cancelled + 1
    end
  end
  redis.call('DEL', set)
end
redis.call('HSETNX', LEDGER, 'closed', ARGV[2])
local status = redis.call('HGET', JOB, 'status')
if status ~= 'queued' and status ~= 'running' and status ~= 'paused' then
  redis.call('DEL', GROUPS)
  redis.call('HSET', LEDGER, 'bytes', 0)
end
signal('closed')
return cancelled
