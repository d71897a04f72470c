-- (time, call, changes known, statuses of an ended job, then for each change: name, value as JSON, line as JSON)
-- → 'ok', 'again' (the log has grown), or the job's status if it has ended. `call` identifies the call: repeated, it
-- gets 'ok'. A line of the log is the caller's JSON, with the time and the version from which it applies put first.
if field('changed_by') == ARGV[2] then return 'ok' end
local status = redis.call('HGET', JOB, 'status')
if status and string.find(' ' .. ARGV[4] .. ' ', ' ' .. status .. ' ', 1, true) then return status end
if redis.call('LLEN', CHANGES) ~= tonumber(ARGV[3]) then return 'again' end
if #ARGV < 5 then return 'ok' end

local from = number('version')
if number('claimed') > 0 then from = from + 1 end
local last = redis.call('LINDEX', CHANGES, -1)
if last then from = math.max(from, tonumber(json_in(last, CHANGES .. '[-1]').from_version) or 0) end
for i = 5, #ARGV, 3 do
  redis.call('HSET', JOB, 'live:' .. ARGV[i], ARGV[i + 1])
  redis.call('RPUSH', CHANGES, string.format('{"time":%.3f,"from_version":%d,', NOW, from) .. ARGV[i + 2]:sub(2))
end
redis.call('HSET', LEDGER, 'changed_by', ARGV[2])
signal('changed')
return 'ok'
