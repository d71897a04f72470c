-- (time, term, version before, name of the weights after, largest age trained, masked tokens, step as JSON, group…)
-- → 'settled', 'fenced', 'closed', 'too_old' or 'contradiction: …'. The groups' state, the new version and the step's
-- record change together. The ages come from the learner, and must agree with the tokens that the workers committed.

-- How many trainable tokens these groups have, by age, from what the workers committed.
local function committed_by_age(first, version)
  local found = {}
  for i = first, #ARGV do
    local where = GROUP .. ARGV[i] .. ' trainable'
    local trainable = redis.call('HGET', GROUP .. ARGV[i], 'trainable')
    if not trainable then
      damaged(where, 'it is missing, as in groups that an older release committed: fork a new job from a checkpoint')
    end
    for sampled_by, tokens in pairs(json_in(trainable, where)) do
      local age = version - (tonumber(sampled_by) or damaged(where, 'it is no number of tokens by version'))
      if type(tokens) ~= 'number' then damaged(where, 'it is no number of tokens by version') end
      found[age] = (found[age] or 0) + tokens
    end
  end
  return found
end

-- How a step's figures (`ages`: trained tokens by age, `masked`: tokens left out as too old) contradict the committed
-- tokens by age (`there`); nothing if they agree.
local function contradiction(ages, masked, there, bound)
  for said, trained in pairs(ages) do
    local tokens = there[tonumber(said)] or 0
    if trained > tokens then return string.format('%d tokens of age %s, of %d', trained, said, tokens) end
  end
  local beyond = 0
  for age, tokens in pairs(there) do
    if age > bound then beyond = beyond + tokens end
  end
  if masked ~= beyond then return string.format('%d tokens masked, of %d older than %d', masked, beyond, bound) end
end

if field('closed') then return 'closed' end
if field('term') ~= ARGV[2] then return 'fenced' end
if field('weights') == ARGV[4] and redis.call('HGET', STEPS, ARGV[3]) == ARGV[7] then return 'settled' end
if field('version') ~= ARGV[3] then return 'fenced' end
if tonumber(ARGV[5]) > bound_of(tonumber(ARGV[3])) then return 'too_old' end
for i = 8, #ARGV do
  if not redis.call('ZSCORE', CLAIMED, ARGV[i]) then return 'fenced' end
end
local step, version = json_in(ARGV[7], STEPS), tonumber(ARGV[3])
local found = contradiction(step.ages, tonumber(ARGV[6]), committed_by_age(8, version), bound_of(version))
if found then return 'contradiction: ' .. found end
for i = 8, #ARGV do
  move(ARGV[i], 'trained', 'version ' .. ARGV[3])
  redis.call('ZREM', CLAIMED, ARGV[i])
end
redis.call('HINCRBY', LEDGER, 'masked_tokens', ARGV[6])
if tonumber(ARGV[5]) > number('largest_age') or not field('largest_age_bound') then
  local bound = string.format('%d', bound_of(tonumber(ARGV[3])))
  redis.call('HSET', LEDGER, 'largest_age', ARGV[5], 'largest_age_bound', bound)
end
redis.call('HSET', STEPS, ARGV[3], ARGV[7])
redis.call('HSET', LEDGER, 'weights', ARGV[4], 'version', tonumber(ARGV[3]) + 1)
signal('version')
return 'settled'
