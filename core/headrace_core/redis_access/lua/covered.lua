-- (time, version) → how many encoded groups were deleted: those of the steps before `version`, which a checkpoint
-- covers. The records of the newest STEPS_KEPT such steps remain, and of older ones the number of tokens they trained
-- on.
local version, forgotten = math.min(tonumber(ARGV[2]), number('version')), 0
local function groups_and_tokens(step)
  local record, tokens = redis.call('HGET', STEPS, step), 0
  if not record then return {}, 0 end
  local read = json_in(record, STEPS .. ' ' .. step)
  for _, trained in pairs(read.ages or {}) do tokens = tokens + trained end
  return read.groups or {}, tokens
end

for step = number('covered'), version - 1 do
  for _, group in ipairs((groups_and_tokens(step))) do
    ended(group)
    forgotten = forgotten + 1
  end
end
if version > number('covered') then redis.call('HSET', LEDGER, 'covered', version) end
for step = number('forgotten_steps'), version - 1 - STEPS_KEPT do
  local _, tokens = groups_and_tokens(step)
  redis.call('HINCRBY', LEDGER, 'forgotten_tokens', string.format('%d', tokens))
  redis.call('HDEL', STEPS, step)
  redis.call('HSET', LEDGER, 'forgotten_steps', step + 1)
end
return forgotten
