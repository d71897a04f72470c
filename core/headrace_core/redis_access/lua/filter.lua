-- (time, term, reason, group…) → 'filtered', 'fenced' or 'closed': ends claimed groups that the algorithm cannot use
if field('closed') then return 'closed' end
if field('term') ~= ARGV[2] then return 'fenced' end
local function filtered(group) return redis.call('HGET', GROUP .. group, 'state') == 'filtered' end
for i = 4, #ARGV do
  if not redis.call('ZSCORE', CLAIMED, ARGV[i]) and not filtered(ARGV[i]) then return 'fenced' end
end
for i = 4, #ARGV do
  if redis.call('ZSCORE', CLAIMED, ARGV[i]) then
    move(ARGV[i], 'filtered', ARGV[3])
    redis.call('ZREM', CLAIMED, ARGV[i])
    ended(ARGV[i])
  end
end
signal('filtered')
return 'filtered'
