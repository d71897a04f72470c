-- (time, reason) → how many groups were cancelled. No lease, claim or settlement succeeds after this; idempotent.
local cancelled = 0
for _, set in ipairs({ LEASES, QUEUED, CLAIMED }) do
  for _, group in ipairs(redis.call('ZRANGE', set, 0, -1)) do
    redis.call('HSET', GROUP .. group, 'token', '')
    move(group, 'cancelled', ARGV[2])
    forget(group)
    cancelled = cancelled + 1
  end
  redis.call('DEL', set)
end
redis.call('HSETNX', LEDGER, 'closed', ARGV[2])
redis.call('DEL', GROUPS)
redis.call('HSET', LEDGER, 'bytes', 0)
signal('closed')
return cancelled
