-- (time, term, version before, name of the weights after, largest age trained, masked tokens, step as JSON, group…)
-- → 'settled', 'fenced', 'closed' or 'too_old'. Trained, new version and step record become true together.
if field('closed') then return 'closed' end
if field('term') ~= ARGV[2] then return 'fenced' end
if field('weights') == ARGV[4] and redis.call('HGET', STEPS, ARGV[3]) == ARGV[7] then return 'settled' end
if field('version') ~= ARGV[3] then return 'fenced' end
if tonumber(ARGV[5]) > bound_of(tonumber(ARGV[3])) then return 'too_old' end
for i = 8, #ARGV do
  if not redis.call('ZSCORE', CLAIMED, ARGV[i]) then return 'fenced' end
end
for i = 8, #ARGV do
  move(ARGV[i], 'trained', 'version ' .. ARGV[3])
  redis.call('ZREM', CLAIMED, ARGV[i])
end
redis.call('HINCRBY', LEDGER, 'masked_tokens', ARGV[6])
if tonumber(ARGV[5]) > number('largest_age') or not field('largest_age_bound') then
  local bound = string.format('%d', bound_of(tonumber(ARGV[3])))
  redis.call('HSET', LEDGER, 'largest_age', ARGV[5], 'largest_age_bound', bound)
end
redis.call('HSET', STEPS, ARGV[3], ARGV[7])
redis.call('HSET', LEDGER, 'weights', ARGV[4], 'version', tonumber(ARGV[3]) + 1)
signal('version')
return 'settled'
