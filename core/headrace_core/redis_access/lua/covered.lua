-- (time, version) → how many encoded groups were forgotten: a checkpoint holds every step before `version`
local version, forgotten = math.min(tonumber(ARGV[2]), number('version')), 0
for step = number('covered'), version - 1 do
  local record = redis.call('HGET', STEPS, step)
  if record then
    for _, group in ipairs((json_in(record, STEPS .. ' ' .. step).groups or {})) do
      forget(group)
      forgotten = forgotten + 1
    end
  end
end
if version > number('covered') then redis.call('HSET', LEDGER, 'covered', version) end
return forgotten
