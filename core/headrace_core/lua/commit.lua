-- (time, group, token, oldest token's version, tokens, encoded group) → 'queued' or 'fenced'
-- An expired lease that nobody took over still commits: the work is good.
local group, token = ARGV[2], ARGV[3]
if not holds(group, token) then
  if redis.call('HGET', GROUP .. group, 'committed') == token then return 'queued' end
  redis.call('HINCRBY', LEDGER, 'fenced', 1)
  return 'fenced'
end
local entry = redis.call('XADD', GROUPS, '*', 'group', group, 'data', ARGV[6])
redis.call('ZREM', LEASES, group)
redis.call('ZADD', QUEUED, group, group)
redis.call(
  'HSET', GROUP .. group, 'entry', entry, 'size', #ARGV[6], 'version', ARGV[4], 'token', '', 'committed', token
)
redis.call('HINCRBY', LEDGER, 'bytes', #ARGV[6])
redis.call('HINCRBY', LEDGER, 'sent_bytes', #ARGV[6])
redis.call('HINCRBY', LEDGER, 'sent', 1)
redis.call('HINCRBY', LEDGER, 'sampled_tokens', ARGV[5])
move(group, 'queued', ARGV[5] .. ' tokens')
signal('queued')
return 'queued'
