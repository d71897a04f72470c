-- (time, call, new status, finish time or '', field of the outcome or '', its value, all valid statuses if a damaged
-- one may be replaced, too, else '', statuses it may follow…) → 'ok', or the present status if that does not permit the
-- new one; nothing if there is no such job
local now = redis.call('HGET', JOB, 'status')
if not now then return now end
return once(JOB, 'moved_by', ARGV[2], function()
  local unknown = ARGV[7] ~= '' and not string.find(' ' .. ARGV[7] .. ' ', ' ' .. now .. ' ', 1, true)
  for i = 8, #ARGV do
    if ARGV[i] == now or unknown then
      redis.call('HDEL', JOB, 'paused_by', 'at_rest')
      redis.call('HSET', JOB, 'status', ARGV[3])
      if ARGV[4] ~= '' then redis.call('HSET', JOB, 'finished_at', ARGV[4]) end
      if ARGV[5] ~= '' then redis.call('HSET', JOB, ARGV[5], ARGV[6]) end
      return 'ok'
    end
  end
  return now
end)
