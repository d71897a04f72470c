-- (time) → {version, {queued group, its oldest version, …}, {leased group, its lease's version, …}}; changes nothing
local function pairs_of(groups)
  local out = {}
  for _, group in ipairs(groups) do
    out[#out + 1] = tonumber(group)
    out[#out + 1] = tonumber(redis.call('HGET', GROUP .. group, 'version'))
  end
  return out
end
local queued, leased = redis.call('ZRANGE', QUEUED, 0, -1), redis.call('ZRANGE', LEASES, 0, -1)
return { number('version'), pairs_of(queued), pairs_of(leased) }
