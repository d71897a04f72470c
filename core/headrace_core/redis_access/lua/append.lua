-- Appends an entry to a job's history. KEYS: job, summary, stream of the entry's kind, marks, temporary stream for
-- thinning. ARGV: source, data, time, max heartbeats ('' if every entry is appended), max bytes, step, reward, age (''
-- if there is none).
-- Returns the entry's number; 0 for a heartbeat that only replaces the summary's newest. A repeated or delayed call is
-- recognised by its data, an evaluation by its step, because a controller and its successor may both measure one.
local job, summary, stream, marks, thinned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local source, data, time, kept = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local most = tonumber(ARGV[5])
local step, reward, age = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local POINTS, PACE, PAGE, COPIES = 40, 32, 500, 20
local kind = string.match(stream, '%w+$')

local function number_of_newest()
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  return newest and tonumber(string.match(newest[1], '^%d+')) or 0
end

-- Readers of the summary's fields. A damaged field starts anew, so that the history continues.
local function number_of(field) return tonumber(redis.call('HGET', summary, field) or '') end
local function json_of(raw)
  local good, found = pcall(cjson.decode, raw or '')
  return good and type(found) == 'table' and found or nil
end
local function added(field, by, otherwise)
  local now = redis.call('HGET', summary, field)
  if now and not (string.match(now, '^%d+$') and #now <= 16) then redis.call('HSET', summary, field, otherwise()) end
  return redis.call('HINCRBY', summary, field, by)
end
local function nothing() return 0 end

-- The newest number of any kind.
local function number_of_last()
  local last = 0
  for _, other in ipairs({ 'event', 'step', 'evaluation', 'update', 'worker', 'reward' }) do
    local newest = redis.call('XREVRANGE', (string.gsub(stream, '%w+$', other)), '+', '-', 'COUNT', 1)[1]
    last = math.max(last, newest and tonumber(string.match(newest[1], '^%d+')) or 0)
  end
  return last
end

-- A point of the sparkline covers `stride` steps: mean reward, number of steps with a reward, largest age. When there
-- are POINTS full ones, pairs of them are merged.
local function halved(spark)
  local merged = {stride = spark.stride * 2, filled = spark.stride * 2, mean = {}, count = {}, age = {}}
  for i = 1, POINTS, 2 do
    local n, m = spark.count[i], spark.count[i + 1]
    table.insert(merged.count, n + m)
    table.insert(merged.mean, n + m > 0 and (spark.mean[i] * n + spark.mean[i + 1] * m) / (n + m) or 0)
    table.insert(merged.age, math.max(spark.age[i], spark.age[i + 1]))
  end
  return merged
end

local function sparked(raw)
  local spark = json_of(raw)
  if not (spark and spark.stride and spark.filled and spark.mean and spark.count and spark.age) then
    spark = {stride = 1, filled = 1, mean = {}, count = {}, age = {}}
  end
  if spark.filled == spark.stride and #spark.age == POINTS then spark = halved(spark) end
  if spark.filled == spark.stride then
    spark.filled = 0
    table.insert(spark.mean, 0)
    table.insert(spark.count, 0)
    table.insert(spark.age, 0)
  end
  local last = #spark.age
  spark.filled = spark.filled + 1
  if reward then
    spark.count[last] = spark.count[last] + 1
    spark.mean[last] = spark.mean[last] + (reward - spark.mean[last]) / spark.count[last]
  end
  spark.age[last] = math.max(spark.age[last], age or 0)
  return cjson.encode(spark)
end

local function paced(raw)
  local pace = json_of(raw) or {}
  table.insert(pace, {step, time})
  if #pace > PACE then table.remove(pace, 1) end
  return cjson.encode(pace)
end

-- Removes every second entry of the older three quarters of the stream, never the first. It writes a new stream,
-- because deleting entries of a stream frees memory only by whole blocks.
local function thin()
  local count, at, seen, bytes, after = redis.call('XLEN', stream), 0, nil, 0, '-'
  redis.call('DEL', thinned)
  repeat
    seen = redis.call('XRANGE', stream, after, '+', 'COUNT', PAGE)
    for _, entry in ipairs(seen) do
      if at % 2 == 0 or at >= 0.75 * count then
        redis.call('XADD', thinned, entry[1], unpack(entry[2]))
        for i = 2, #entry[2], 2 do bytes = bytes + #entry[2][i] end
      else
        added('left out ' .. kind, 1, nothing)
        if kind == 'step' then redis.call('ZREM', marks, string.match(entry[1], '^%d+')) end
      end
      at, after = at + 1, '(' .. entry[1]
    end
  until #seen < PAGE
  redis.call('RENAME', thinned, stream)
  redis.call('HSET', summary, 'bytes ' .. kind, bytes)
end

local function step_in(evaluation)
  local found = json_of(evaluation)
  return found and found.step
end

-- The entry's number, if it is already among the newest entries of its kind.
local function known()
  local measured = kind == 'evaluation' and step_in(data)
  for _, entry in ipairs(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', COPIES)) do
    local same = entry[2][2] == source and entry[2][4]
    if same and (same == data or measured and step_in(same) == measured) then
      return tonumber(string.match(entry[1], '^%d+'))
    end
  end
end

-- at its memory limit Redis refuses a script whose first write takes memory, and checks no later write; this takes none
redis.call('HDEL', summary, '')
if kept and redis.call('HGET', summary, source) == data then return number_of_newest() end
local before = not kept and known()
if before then return before end
redis.call('HSET', summary, source, data)

if kept then
  -- a stored time in the future is damaged, or the clock was set back
  local first, last = math.min(number_of('first ' .. source) or time, time), number_of('last ' .. source)
  if last and last <= time and time - last < (time - first) / kept then return 0 end
  redis.call('HSETNX', summary, 'first ' .. source, ARGV[3])
  redis.call('HSET', summary, 'last ' .. source, ARGV[3])
end

local number = added('entries', 1, number_of_last)
if number <= number_of_newest() then -- the count is damaged, although it is a number
  number = number_of_last() + 1
  redis.call('HSET', summary, 'entries', number)
end
redis.call('XADD', stream, number .. '-0', 'source', source, 'data', data)
if added('bytes ' .. kind, #source + #data, nothing) > most then thin() end
if step then
  local newest = redis.call('ZREVRANGE', marks, 0, 0, 'WITHSCORES')
  if not newest[2] or step > tonumber(newest[2]) then
    redis.call('ZADD', marks, step, number)
    redis.call('HSET', summary, 'spark', sparked(redis.call('HGET', summary, 'spark')))
    if redis.call('EXISTS', job) == 1 then
      redis.call('HSET', job, 'pace', paced(redis.call('HGET', job, 'pace')))
    end
  end
end
return number
