-- (time, worker, its policy version, how many, lease seconds, max expiries) → {refusal or '', version, lease, lease, …}
-- Leases groups whose lease expired (oldest first), then new groups within the pacing window (`staleness.capacity` has
-- the same formula). A lease is {group, token, attempt, version}.
local worker, held, want = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local seconds, most_lapses = tonumber(ARGV[5]), tonumber(ARGV[6])
local version = number('version')
if field('closed') then return { 'closed', version } end
forgive_silence(seconds)
if redis.call('HEXISTS', DRAINS, worker) == 1 then return { 'drained', version } end
if held < version then return { 'behind', version } end

local function lease(group)
  local token = worker .. '#' .. redis.call('HINCRBY', LEDGER, 'tokens', 1)
  local attempt = redis.call('HINCRBY', GROUP .. group, 'attempt', 1)
  redis.call('HSET', GROUP .. group, 'token', token, 'version', version)
  redis.call('ZADD', LEASES, NOW + seconds, group)
  move(group, 'leased', string.format('%s attempt %d version %d', worker, attempt, version))
  return { tonumber(group), token, attempt, version }
end

-- Counts an expired lease; true if the group has reached the limit. A group that was given back or is retried has no
-- token: no lease of it expired.
local function lapsed_for_good(group)
  if redis.call('HGET', GROUP .. group, 'token') == '' then return false end
  return redis.call('HINCRBY', GROUP .. group, 'lapses', 1) >= most_lapses
end

-- How many new groups fit in the job's share of Redis' memory, if leased ones have the mean size. The groups that the
-- next step lacks are always admitted, because only a step frees memory.
local function room_in_memory(outstanding, leased, batch_size)
  local share, held, sent, sent_bytes = numbers('share', 'bytes', 'sent', 'sent_bytes')
  if share == 0 then return math.huge end
  local mean, needed = sent_bytes / math.max(sent, 1), batch_size - outstanding
  if mean == 0 then return needed end
  return math.max(needed, math.floor((share - held) / mean - leased))
end

local answer = { '', version }
local expired = groups_in(LEASES, 'ZRANGEBYSCORE', LEASES, '-inf', NOW)
table.sort(expired, function(a, b) return tonumber(a) < tonumber(b) end)
for _, group in ipairs(expired) do
  if #answer - 2 >= want then break end
  if lapsed_for_good(group) then
    fail(group, 'generation_failed', string.format('lease expired %d times', most_lapses))
  else
    answer[#answer + 1] = lease(group)
  end
end

local leased, queued, claimed, trained = numbers('leased', 'queued', 'claimed', 'trained')
local max_staleness = bound_of(math.huge)
local batch_size, total_groups = numbers('batch_size', 'total_groups')
local outstanding = leased + queued + claimed
local paced = (max_staleness + 1) * batch_size - outstanding
local left = total_groups - trained - outstanding
local wanted = math.min(paced, left, want - (#answer - 2))
local room = math.min(wanted, room_in_memory(outstanding, leased, batch_size))
for _ = 1, room do
  answer[#answer + 1] = lease(redis.call('HINCRBY', LEDGER, 'admitted', 1) - 1)
end
if wanted > 0 and room <= 0 then redis.call('HINCRBY', LEDGER, 'held_back', 1) end
if #answer == 2 then answer[1] = wanted > 0 and 'memory' or 'full' end
return answer
