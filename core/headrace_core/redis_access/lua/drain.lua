-- (time, call, worker, its drain as JSON, or '' to end it) → its state before, 'drained' or 'free'; nothing if there is
-- no such job
if redis.call('EXISTS', JOB) == 0 then return false end
return once(JOB, 'drained_by', ARGV[2], function()
  local was = redis.call('HEXISTS', DRAINS, ARGV[3]) == 1 and 'drained' or 'free'
  if ARGV[4] == '' then
    redis.call('HDEL', DRAINS, ARGV[3])
  else
    redis.call('HSET', DRAINS, ARGV[3], ARGV[4])
  end
  signal('drain')
  return was
end)
