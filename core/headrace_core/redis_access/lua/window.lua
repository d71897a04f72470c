-- (time) → {version, {queued group, its oldest version, …}, {leased group, its lease's version, …}}; changes nothing
local function pairs_of(groups)
  local out = {}
  for _, group in ipairs(groups) do
    out[#out + 1] = tonumber(group)
    out[#out + 1] = version_of(group)
  end
  return out
end
return { number('version'), pairs_of(live(QUEUED)), pairs_of(live(LEASES)) }
