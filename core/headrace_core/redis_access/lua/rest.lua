-- (time, call, status) → 'ok', and the job is marked at rest; or its present status if it is another; nothing if there
-- is no such job
local now = redis.call('HGET', JOB, 'status')
if not now then return now end
return once(JOB, 'rested_by', ARGV[2], function()
  if now ~= ARGV[3] then return now end
  redis.call('HSET', JOB, 'at_rest', 'true')
  return 'ok'
end)
