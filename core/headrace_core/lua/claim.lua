-- (time, term, how many to take, group…, then groups to drop) → 'fenced', 'closed', 'gone' (a group is no longer queued) or {encoded group…}
if field('closed') then return 'closed' end
if field('term') ~= ARGV[2] then return 'fenced' end
local take = tonumber(ARGV[3])
for i = 4, #ARGV do
  if not redis.call('ZSCORE', QUEUED, ARGV[i]) then return 'gone' end
end
local version = number('version')
for i = 4 + take, #ARGV do
  redis.call('ZREM', QUEUED, ARGV[i])
  local oldest = redis.call('HGET', GROUP .. ARGV[i], 'version')
  move(ARGV[i], 'dropped_stale', 'oldest token of version ' .. oldest .. ' at version ' .. version)
  forget(ARGV[i])
end
local messages = {}
for i = 4, 3 + take do
  local group = ARGV[i]
  redis.call('ZREM', QUEUED, group)
  redis.call('ZADD', CLAIMED, group, group)
  move(group, 'claimed', 'version ' .. version)
  local entry = redis.call('HGET', GROUP .. group, 'entry')
  messages[#messages + 1] = redis.call('XRANGE', GROUPS, entry, entry)[1][2][4]
end
if #ARGV >= 4 + take then signal('dropped') end
return messages
