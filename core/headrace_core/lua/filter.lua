-- (time, term, reason, group…) → 'filtered' or 'fenced': claimed groups that the algorithm has no use for
if field('term') ~= ARGV[2] then return 'fenced' end
for i = 4, #ARGV do
  if not redis.call('ZSCORE', CLAIMED, ARGV[i]) then return 'fenced' end
end
for i = 4, #ARGV do
  redis.call('ZREM', CLAIMED, ARGV[i])
  move(ARGV[i], 'filtered', ARGV[3])
  forget(ARGV[i])
end
signal('filtered')
return 'filtered'
