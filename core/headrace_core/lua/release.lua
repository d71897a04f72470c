-- (time, group, token, group, token, …) → how many were given back; a lease given back does not count as an attempt
local released = 0
for i = 2, #ARGV, 2 do
  if holds(ARGV[i], ARGV[i + 1]) then
    redis.call('HINCRBY', GROUP .. ARGV[i], 'attempt', -1)
    reissue(ARGV[i], 'given back')
    released = released + 1
  end
end
return released
