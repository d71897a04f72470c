-- Shared by every ledger script: the names of the keys, and the one way a group changes its state.
--
-- Invariant: the sum of the state counts equals `admitted`, because `move` is the only place that changes a count, and a
-- script runs whole or not at all. ARGV[1] is always the time: '' for the server's own, else seconds (a virtual clock).
--
-- A client whose connection broke sends its call again, not knowing whether the first one arrived. So commit, claim,
-- settle and filter answer the second the same, and change nothing; a doubled admit leaves leases that expire.
redis.replicate_commands() -- needed before Redis 7 to write after TIME; a no-op since

-- At its memory limit Redis refuses a script's first write, unless it takes no memory: what follows passes. All scripts
-- do, because what they write is small, or makes memory free; a group that is large is refused by commit itself.
redis.call('HDEL', KEYS[1], '')

local LEDGER, LEASES, QUEUED, CLAIMED = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local GROUPS, STEPS, SIGNALS, GROUP = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local CHANGES, DRAINS, JOB, FAILED, ENDED = KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local FAILED_KEPT, ENDED_KEPT, STEPS_KEPT = 1000, 5000, 5000
local LIVE = { 'leased', 'queued', 'claimed' }
local STATES = {
  'leased', 'queued', 'claimed', 'trained', 'dropped_stale', 'filtered', 'reward_failed', 'generation_failed', 'cancelled',
}
local FIGURES = {
  'admitted', 'version', 'masked_tokens', 'largest_age', 'largest_age_bound', 'sampled_tokens', 'fenced', 'bytes', 'sent',
  'sent_bytes', 'share', 'held_back', 'term', 'tokens', 'covered', 'batch_size', 'max_staleness', 'total_groups',
  'forgotten_steps', 'forgotten_tokens',
}

local function read_clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end
local NOW = read_clock()

-- What is kept cannot be what was written: the caller is told where (`scripts.Script`), and the script ends.
local function damaged(where, why) error('damaged<' .. where .. '>' .. why, 0) end
local function number_in(found, where)
  if not found then return 0 end
  return tonumber(found) or damaged(where, 'it is no number')
end

-- Whether a text is a figure that can be counted on: whole, and exact as a number of Lua and of Redis.
local function is_figure(text) return string.match(text, '^%-?%d+$') and #text <= 16 end

local function field(name) return redis.call('HGET', LEDGER, name) end
local function number(name) return number_in(field(name), LEDGER .. ' ' .. name) end
local function numbers(...)
  local found = redis.call('HMGET', LEDGER, ...)
  for i = 1, #found do found[i] = number_in(found[i], LEDGER .. ' ' .. select(i, ...)) end
  return unpack(found)
end
-- The groups of a sorted set, each a number.
local function groups_in(set, ...)
  local found = redis.call(...)
  for _, group in ipairs(found) do
    if not string.match(group, '^%d+$') then damaged(set .. ' ' .. group, 'it is no group') end
  end
  return found
end
local function version_of(group)
  local where = GROUP .. group
  return number_in(redis.call('HGET', where, 'version') or '', where .. ' version')
end
local function live(set) return groups_in(set, 'ZRANGE', set, 0, -1) end
local function signal(what) redis.call('XADD', SIGNALS, 'MAXLEN', '~', 256, '*', 'what', what) end

-- An object of JSON.
local function json_in(text, where)
  local good, found = pcall(cjson.decode, text)
  if good and type(found) == 'table' then return found end
  damaged(where, 'it is no object of JSON')
end

-- max_staleness of the step that updates `version`: by the newest change that holds for it, else what the job began with.
local function bound_of(version)
  local first
  for i = redis.call('LLEN', CHANGES) - 1, 0, -1 do
    local change = json_in(redis.call('LINDEX', CHANGES, i), CHANGES .. '[' .. i .. ']')
    if change.name == 'max_staleness' then
      if change.from_version <= version then return change.after end
      first = change.before
    end
  end
  return first or number('max_staleness')
end

-- Adds to a figure of the ledger. One that is damaged stays so: only what ends a job comes here with one (sound.lua).
local function count(name, by)
  local now = field(name)
  if not now or is_figure(now) then redis.call('HINCRBY', LEDGER, name, by) end
end

-- The state that the group's record says; where that cannot be read, that of the set which the group is in.
local function state_of(group, said)
  for _, state in ipairs(STATES) do
    if said == state then return said end
  end
  for i, set in ipairs({ LEASES, QUEUED, CLAIMED }) do
    if said and redis.call('ZSCORE', set, group) then return LIVE[i] end
  end
end

-- Into `to`, with a line of history, before the group leaves the set it is in. `note` says why or by whom.
local function move(group, to, note)
  local key = GROUP .. group
  local was = redis.call('HMGET', key, 'state', 'history')
  local from = state_of(group, was[1])
  if from then count(from, -1) end
  count(to, 1)
  local line = string.format('%s\t%.3f\t%s\n', to, NOW, (note:gsub('\n', ' ')))
  redis.call('HSET', key, 'state', to, 'history', (was[2] or '') .. line)
end

-- Forget the encoded group; nobody will train on it (again).
local function forget(group)
  local found = redis.call('HMGET', GROUP .. group, 'entry', 'size')
  if found[1] then
    redis.pcall('XDEL', GROUPS, found[1]) -- refused where the entry is no id: nothing is there to forget then
    redis.call('HDEL', GROUP .. group, 'entry', 'size', 'trainable')
    count('bytes', -(tonumber(found[2]) or 0))
  end
end

-- The group's record is kept for reading, while it is among the newest `most` of this list of such groups: a job makes any
-- number of them, and nothing of an older one is ever asked for again (whatever still arrives for it is fenced).
local function keep_newest(group, list, most)
  redis.call('RPUSH', list, group)
  while redis.call('LLEN', list) > most do
    redis.call('DEL', GROUP .. redis.call('LPOP', list))
  end
end

-- A group that did not fail has ended: it was given up, or two checkpoints hold the step that trained it.
local function ended(group)
  forget(group)
  keep_newest(group, ENDED, ENDED_KEPT)
end

-- A leased group ends as `state`, a failure.
local function fail(group, state, note)
  move(group, state, note)
  redis.call('ZREM', LEASES, group)
  redis.call('HSET', GROUP .. group, 'token', '')
  keep_newest(group, FAILED, FAILED_KEPT)
  signal('failed')
end

-- While nobody reached Redis, because it was away or stood still, nobody could prolong a lease: such a time takes nothing
-- off any. Of a virtual clock the server's own standstill is no part. `seconds`: the life of a lease; workers speak at
-- least every third of it.
local function forgive_silence(seconds)
  if ARGV[1] ~= '' then return end
  local heard = tonumber(field('heard')) or 0 -- of none that can be read, nothing is forgiven once
  local silence = NOW - heard
  if heard > 0 and silence > seconds / 2 then
    local held = redis.call('ZRANGEBYSCORE', LEASES, '(' .. string.format('%.6f', heard), '+inf', 'WITHSCORES')
    for i = 1, #held, 2 do
      redis.call('ZADD', LEASES, tonumber(held[i + 1]) + silence, held[i])
    end
  end
  redis.call('HSET', LEDGER, 'heard', string.format('%.6f', NOW))
end

-- The group is to be leased again at once; whoever holds it now is fenced out, because no token equals ''. Its tokens
-- will all be new, so it counts as young as the policy from here on.
local function reissue(group, note)
  move(group, 'leased', note)
  redis.call('HSET', GROUP .. group, 'token', '', 'version', number('version'))
  redis.call('ZADD', LEASES, 0, group)
  signal('reissue')
end

local function holds(group, token)
  local lease = redis.call('HMGET', GROUP .. group, 'state', 'token')
  return lease[1] == 'leased' and lease[2] == token and token ~= ''
end

-- Carries a call out once. A copy of it may be stuck on its way, and arrive when others have come between: it changes
-- nothing, and is answered as the first was, while that is among the newest (some 40) that `name` of `key` holds.
local function once(key, name, call, carry_out)
  local calls = redis.call('HGET', key, name) or ''
  local answered = calls:match(call .. '=([^;]*);')
  if answered then return answered end
  local answer = carry_out()
  redis.call('HSET', key, name, (call .. '=' .. answer .. ';' .. calls):sub(1, 1024))
  return answer
end
