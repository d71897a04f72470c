-- (time, group, token, state to end in, max failures, reason) → that state, 'leased' (it will be leased again) or
-- 'fenced'
local group, token, state, attempts = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if not holds(group, token) then
  redis.call('HINCRBY', LEDGER, 'fenced', 1)
  return 'fenced'
end
if redis.call('HINCRBY', GROUP .. group, 'failures', 1) < attempts then
  reissue(group, 'retry: ' .. ARGV[6])
  return 'leased'
end
fail(group, state, ARGV[6])
return state
