-- (time, group, token, oldest token's version, tokens, encoded group, tokens to train by version as JSON)
-- → 'queued' or 'fenced'
-- An expired lease that was not reissued can still commit. The last twentieth of Redis' memory is reserved for ending
-- and pausing jobs: a group that does not fit below it is refused with Redis' own error, and the client retries.
local group, token = ARGV[2], ARGV[3]
local function full(bytes)
  local memory = redis.call('INFO', 'memory')
  local used, most = string.match(memory, 'used_memory:(%d+)'), string.match(memory, 'maxmemory:(%d+)')
  return tonumber(most) > 0 and tonumber(used) + bytes > 0.95 * tonumber(most)
end
if not holds(group, token) then
  if redis.call('HGET', GROUP .. group, 'committed') == token then return 'queued' end
  redis.call('HINCRBY', LEDGER, 'fenced', 1)
  return 'fenced'
end
if full(#ARGV[6]) then return redis.error_reply('OOM the memory kept for groups is used up') end
local entry = redis.call('XADD', GROUPS, '*', 'group', group, 'data', ARGV[6])
move(group, 'queued', ARGV[5] .. ' tokens')
redis.call('ZREM', LEASES, group)
redis.call('ZADD', QUEUED, group, group)
redis.call(
  'HSET', GROUP .. group, 'entry', entry, 'size', #ARGV[6], 'version', ARGV[4], 'token', '', 'committed', token,
  'trainable', ARGV[7]
)
redis.call('HINCRBY', LEDGER, 'bytes', #ARGV[6])
redis.call('HINCRBY', LEDGER, 'sent_bytes', #ARGV[6])
redis.call('HINCRBY', LEDGER, 'sent', 1)
redis.call('HINCRBY', LEDGER, 'sampled_tokens', ARGV[5])
signal('queued')
return 'queued'
