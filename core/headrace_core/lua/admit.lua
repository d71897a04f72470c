-- (time, worker, worker's policy version, how many, lease seconds, most attempts) → {refusal or '', version, lease…}
-- Expired leases first (oldest group first), then new groups within the pacing window. A lease is {group, token, attempt, version}.
local worker, held, want = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local seconds, attempts = tonumber(ARGV[5]), tonumber(ARGV[6])
local version = number('version')
if field('closed') then return { 'closed', version } end
if held < version then return { 'behind', version } end

local function lease(group, attempt)
  local token = worker .. '#' .. redis.call('HINCRBY', LEDGER, 'tokens', 1)
  redis.call('HSET', GROUP .. group, 'token', token, 'attempt', attempt, 'version', version)
  redis.call('ZADD', LEASES, NOW + seconds, group)
  move(group, 'leased', string.format('%s attempt %d version %d', worker, attempt, version))
  return { tonumber(group), token, attempt, version }
end

local answer = { '', version }
local expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', NOW)
table.sort(expired, function(a, b) return tonumber(a) < tonumber(b) end)
for _, group in ipairs(expired) do
  if #answer - 2 >= want then break end
  local attempt = tonumber(redis.call('HGET', GROUP .. group, 'attempt')) + 1
  if attempt > attempts then
    redis.call('ZREM', LEASES, group)
    move(group, 'generation_failed', string.format('lease expired %d times', attempts))
    redis.call('HSET', GROUP .. group, 'token', '')
  else
    answer[#answer + 1] = lease(group, attempt)
  end
end

local outstanding = number('leased') + number('queued') + number('claimed')
local paced = (number('max_staleness') + 1) * number('batch_size') - outstanding
local left = number('total_groups') - number('trained') - outstanding
local room = math.min(paced, left, want - (#answer - 2))
for _ = 1, room do
  local group = number('admitted')
  redis.call('HINCRBY', LEDGER, 'admitted', 1)
  answer[#answer + 1] = lease(group, 1)
end
if #answer == 2 then answer[1] = 'full' end
return answer
