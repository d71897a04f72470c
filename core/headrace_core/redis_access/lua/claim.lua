-- (time, term, call, changes of settings known, how many to take, group…, then groups to drop) → 'fenced', 'closed',
-- 'gone' (a group is no longer queued, or the settings have changed), or {encoded group…}. `call` identifies this
-- claim: repeated, it gets the same groups again.
if field('closed') then return 'closed' end
if field('term') ~= ARGV[2] then return 'fenced' end
local call, first, last = ARGV[3], 6, 5 + tonumber(ARGV[5])
local version = number('version')

if field('claim') ~= call then
  if redis.call('LLEN', CHANGES) ~= tonumber(ARGV[4]) then return 'gone' end
  for i = first, #ARGV do
    if not redis.call('ZSCORE', QUEUED, ARGV[i]) then return 'gone' end
  end
  for i = first, last do
    move(ARGV[i], 'claimed', 'version ' .. version)
    redis.call('ZREM', QUEUED, ARGV[i])
    redis.call('ZADD', CLAIMED, ARGV[i], ARGV[i])
  end
  for i = last + 1, #ARGV do
    local oldest = redis.call('HGET', GROUP .. ARGV[i], 'version')
    move(ARGV[i], 'dropped_stale', 'oldest token of version ' .. oldest .. ' at version ' .. version)
    redis.call('ZREM', QUEUED, ARGV[i])
    ended(ARGV[i])
  end
  if #ARGV > last then signal('dropped') end
  redis.call('HSET', LEDGER, 'claim', call)
end

local messages = {}
for i = first, last do
  local entry = redis.call('HGET', GROUP .. ARGV[i], 'entry')
  local found = entry and string.match(entry, '^%d+%-%d+$') and redis.call('XRANGE', GROUPS, entry, entry)[1]
  if not found or not found[2][4] then damaged(GROUP .. ARGV[i] .. ' entry', 'it leads to no encoded group') end
  messages[#messages + 1] = found[2][4]
end
return messages
