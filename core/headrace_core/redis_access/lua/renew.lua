-- (time, lease seconds, group, token, group, token, …) → groups whose lease is lost
forgive_silence(tonumber(ARGV[2]))
local lost = {}
for i = 3, #ARGV, 2 do
  if holds(ARGV[i], ARGV[i + 1]) then
    redis.call('ZADD', LEASES, NOW + tonumber(ARGV[2]), ARGV[i])
  else
    lost[#lost + 1] = tonumber(ARGV[i])
  end
end
return lost
