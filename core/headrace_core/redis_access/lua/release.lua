-- (time, group, token, group, token, …) → how many leases were given back; their groups can be leased again at once
local released = 0
for i = 2, #ARGV, 2 do
  if holds(ARGV[i], ARGV[i + 1]) then
    reissue(ARGV[i], 'given back')
    released = released + 1
  end
end
return released
