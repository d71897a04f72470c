-- (time) → {version, newest bound, bytes held, share, times held back, {stage, groups, oldest time as text, oldest
-- version, bytes}, …}; the oldest of an empty stage are '' and -1.
-- A group's time is when it entered its stage: the last line of its history. Changes nothing.
local answer = { number('version'), bound_of(math.huge), numbers('bytes', 'share', 'held_back') }
for _, stage in ipairs({ { 'leased', LEASES }, { 'queued', QUEUED }, { 'claimed', CLAIMED } }) do
  local groups, since, oldest, bytes = live(stage[2]), nil, nil, 0
  for _, group in ipairs(groups) do
    local where = GROUP .. group
    local found = redis.call('HMGET', where, 'history', 'size')
    local at = tonumber(string.match(found[1] or '', '\t([%d.]+)\t[^\n]*\n$'))
    local version = version_of(group)
    if not at then damaged(where .. ' history', 'it has no last line') end
    if not since or at < since then since = at end
    if not oldest or version < oldest then oldest = version end
    bytes = bytes + number_in(found[2], where .. ' size')
  end
  answer[#answer + 1] = { stage[1], #groups, since and string.format('%.3f', since) or '', oldest or -1, bytes }
end
return answer
