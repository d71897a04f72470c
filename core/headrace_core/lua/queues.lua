-- (time) → {version, newest bound, bytes held, share, times held back, {stage, groups, oldest time as text, oldest
-- version, bytes}, …}: '' and -1 of an empty stage.
-- A group's time is when it came into its stage, the last line of its history. Changes nothing.
local answer = { number('version'), bound_of(math.huge), numbers('bytes', 'share', 'held_back') }
for _, stage in ipairs({ { 'leased', LEASES }, { 'queued', QUEUED }, { 'claimed', CLAIMED } }) do
  local groups, since, oldest, bytes = redis.call('ZRANGE', stage[2], 0, -1), nil, nil, 0
  for _, group in ipairs(groups) do
    local found = redis.call('HMGET', GROUP .. group, 'version', 'history', 'size')
    local at, version = tonumber(string.match(found[2], '\t([%d.]+)\t[^\n]*\n$')), tonumber(found[1])
    if not since or at < since then since = at end
    if not oldest or version < oldest then oldest = version end
    bytes = bytes + tonumber(found[3] or '0')
  end
  answer[#answer + 1] = { stage[1], #groups, since and string.format('%.3f', since) or '', oldest or -1, bytes }
end
return answer
