-- (time, worker) → how many leases of the worker, whose process has died, were ended
local ended = 0
for _, group in ipairs(live(LEASES)) do
  local token = redis.call('HGET', GROUP .. group, 'token') or ''
  if token:sub(1, #ARGV[2] + 1) == ARGV[2] .. '#' then
    redis.call('ZADD', LEASES, 0, group)
    ended = ended + 1
  end
end
if ended > 0 then signal('reissue') end
return ended
