-- Prefix of every ledger script: the names of the keys, and `move`, the only way in which a group changes its state.
--
-- Invariant: the sum of the state counts equals `admitted`, because only `move` changes a count, and a script is
-- atomic. ARGV[1] is always the time: '' for the server's own clock, else Unix seconds (of a virtual clock).
--
-- A client whose connection broke repeats its call, not knowing whether the first one arrived. So a repeated commit,
-- claim, settle or filter gets the same answer and changes nothing; a repeated admit leaves leases that expire.
redis.replicate_commands() -- needed before Redis 7 to write after TIME; a no-op since

-- At its memory limit Redis checks only a script's first write, and refuses it if it takes memory. This one takes none,
-- so that all scripts work at the limit: their writes are small, or free memory; commit itself refuses large groups.
redis.call('HDEL', KEYS[1], '')

local LEDGER, LEASES, QUEUED, CLAIMED = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local GROUPS, STEPS, SIGNALS, GROUP = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local CHANGES, DRAINS, JOB, FAILED, ENDED = KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local FAILED_KEPT, ENDED_KEPT, STEPS_KEPT = 1000, 5000, 5000
local LIVE = { 'leased', 'queued', 'claimed' }
local STATES = {
  'leased', 'queued', 'claimed', 'trained', 'dropped_stale', 'filtered', 'reward_failed', 'generation_failed',
  'cancelled',
}
local FIGURES = {
  'admitted', 'version', 'masked_tokens', 'largest_age', 'largest_age_bound', 'sampled_tokens', 'fenced', 'bytes',
  'sent', 'sent_bytes', 'share', 'held_back', 'term', 'tokens', 'covered', 'batch_size', 'max_staleness',
  'total_groups', 'forgotten_steps', 'forgotten_tokens',
}

local function read_clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end
local NOW = read_clock()

-- Ends the script with an error that names a damaged record; `scripts.Script` raises it as `Damaged`.
local function damaged(where, why) error('damaged<' .. where .. '>' .. why, 0) end
local function number_in(found, where)
  if not found then return 0 end
  return tonumber(found) or damaged(where, 'it is no number')
end

-- Whether a text is a whole number that both Lua (a double) and Redis represent exactly.
local function is_figure(text) return string.match(text, '^%-?%d+$') and #text <= 16 end

local function field(name) return redis.call('HGET', LEDGER, name) end
local function number(name) return number_in(field(name), LEDGER .. ' ' .. name) end
local function numbers(...)
  local found = redis.call('HMGET', LEDGER, ...)
  for i = 1, #found do found[i] = number_in(found[i], LEDGER .. ' ' .. select(i, ...)) end
  return unpack(found)
end
-- The members of a sorted set of groups. Ends the script if one is not a group number.
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

-- Decodes a JSON object.
local function json_in(text, where)
  local good, found = pcall(cjson.decode, text)
  if good and type(found) == 'table' then return found end
  damaged(where, 'it is no object of JSON')
end

-- max_staleness of the step that updates `version`: from the newest change that applies to it, else the initial value.
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

-- Adds to a figure of the ledger. A damaged figure is left as it is; because of sound.lua, only scripts that end a job
-- meet one here.
local function count(name, by)
  local now = field(name)
  if not now or is_figure(now) then redis.call('HINCRBY', LEDGER, name, by) end
end

-- The state in the group's record; if that is damaged, the state of the set that the group is in.
local function state_of(group, said)
  for _, state in ipairs(STATES) do
    if said == state then return said end
  end
  for i, set in ipairs({ LEASES, QUEUED, CLAIMED }) do
    if said and redis.call('ZSCORE', set, group) then return LIVE[i] end
  end
end

-- Changes a group's state to `to`: updates the counts, and adds a line to its history; `note` says why or by whom. Call
-- it before the group is removed from its set (see state_of).
local function move(group, to, note)
  local key = GROUP .. group
  local was = redis.call('HMGET', key, 'state', 'history')
  local from = state_of(group, was[1])
  if from then count(from, -1) end
  count(to, 1)
  local line = string.format('%s\t%.3f\t%s\n', to, NOW, (note:gsub('\n', ' ')))
  redis.call('HSET', key, 'state', to, 'history', (was[2] or '') .. line)
end

-- Deletes the encoded group, which will not be trained on (again).
local function forget(group)
  local found = redis.call('HMGET', GROUP .. group, 'entry', 'size')
  if found[1] then
    redis.pcall('XDEL', GROUPS, found[1]) -- pcall: it fails if the entry id is damaged, when there is nothing to delete
    redis.call('HDEL', GROUP .. group, 'entry', 'size', 'trainable')
    count('bytes', -(tonumber(found[2]) or 0))
  end
end

-- Keeps the records of the newest `limit` groups of this list, and deletes older ones: a job has any number of groups,
-- and no script needs the record of an ended group again (late calls for it are fenced).
local function keep_newest(group, list, limit)
  redis.call('RPUSH', list, group)
  while redis.call('LLEN', list) > limit do
    redis.call('DEL', GROUP .. redis.call('LPOP', list))
  end
end

-- A group has ended without a failure: it was given up, or two checkpoints cover the step that trained it.
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

-- Prolongs all leases by the time in which Redis was down or paused, because no worker could renew one then. `seconds`
-- is the lifetime of a lease; workers call at least every third of it, so that a longer silence means an outage. A
-- virtual clock does not advance during an outage.
local function forgive_silence(seconds)
  if ARGV[1] ~= '' then return end
  local heard = tonumber(field('heard')) or 0 -- missing or damaged: nothing is forgiven this time
  local silence = NOW - heard
  if heard > 0 and silence > seconds / 2 then
    local held = redis.call('ZRANGEBYSCORE', LEASES, '(' .. string.format('%.6f', heard), '+inf', 'WITHSCORES')
    for i = 1, #held, 2 do
      redis.call('ZADD', LEASES, tonumber(held[i + 1]) + silence, held[i])
    end
  end
  redis.call('HSET', LEDGER, 'heard', string.format('%.6f', NOW))
end

-- Makes the group available for a new lease at once. Its present holder is fenced out, because no token equals ''. Its
-- tokens will all be new, so that its version is the current one from here on.
local function reissue(group, note)
  move(group, 'leased', note)
  redis.call('HSET', GROUP .. group, 'token', '', 'version', number('version'))
  redis.call('ZADD', LEASES, 0, group)
  signal('reissue')
end

-- Whether `token` is the group's valid lease.
local function holds(group, token)
  local lease = redis.call('HMGET', GROUP .. group, 'state', 'token')
  return lease[1] == 'leased' and lease[2] == token and token ~= ''
end

-- Executes a call once. A duplicate may be delayed on its way and arrive after other calls: it changes nothing, and
-- gets the first answer, as long as that is among the newest (some 40) stored in field `name` of `key`.
local function once(key, name, call, carry_out)
  local calls = redis.call('HGET', key, name) or ''
  local answered = calls:match(call .. '=([^;]*);')
  if answered then return answered end
  local answer = carry_out()
  redis.call('HSET', key, name, (call .. '=' .. answer .. ';' .. calls):sub(1, 1024))
  return answer
end
