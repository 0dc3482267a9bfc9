-- Moves: each leaves every key of the task consistent.

-- Takes a task off the indexes of the state that it leaves.
local function leave(c, id, from, to, plan, worker)
  if not (TRANSITIONS[from] and TRANSITIONS[from][to]) then
    error('KINGTASK no transition from ' .. tostring(from) .. ' to ' .. to)
  end
  if from == 'running' then
    call('ZREM', c.p .. 'running', id)
    call('HDEL', c.p .. 'held:' .. worker, id)
    count(c, plan.queue, 'running', -1)
    return
  end
  if from == 'scheduled' then
    call('ZREM', c.p .. 'schedule', id)
    count(c, plan.queue, 'scheduled', -1)
  else
    call('ZREM', c.p .. 'ready:' .. plan.queue, id)
  end
  if plan.expires > 0 then call('ZREM', c.p .. 'expiry', id) end
end

-- Reserves n places; the i-th of them is place_of(plan, first + i).
local function next_places(c, n)
  c.sequence = c.sequence + n
  return c.sequence - n
end

local function place_of(plan, number)
  return (9 - plan.priority) * BAND + number
end

-- Takes {{id, plan, place}, …}: a call of its own for each would cost as much as all the rest of a submit.
local function enter_ready(c, tasks)
  local by_queue = {}
  for _, t in ipairs(tasks) do
    local id, plan = t[1], t[2]
    local adds = by_queue[plan.queue]
    if not adds then adds = {}; by_queue[plan.queue] = adds end
    adds[#adds + 1] = t[3]
    adds[#adds + 1] = id
    if plan.expires > 0 then call('ZADD', c.p .. 'expiry', int(plan.expires), id) end
  end
  for queue, adds in pairs(by_queue) do
    call('ZADD', c.p .. 'ready:' .. queue, unpack(adds))
    c.gained[queue] = (c.gained[queue] or 0) + #adds / 2
  end
end

local function earliest(c)
  local first = call('ZRANGE', c.p .. 'schedule', 0, 0, 'WITHSCORES')
  return first[2] and floor(tonumber(first[2])) or nil
end

-- Takes {{id, plan, due}, …} in order of submission, which the scores keep.
local function enter_schedule(c, tasks)
  if #tasks == 0 then return end
  local key, first, last = c.p .. 'schedule', math.huge, 0
  c.before = c.before or {earliest(c)}
  for _, t in ipairs(tasks) do first = math.min(first, t[3]); last = math.max(last, t[3]) end
  local empty = #call('ZRANGEBYSCORE', key, int(first), '(' .. int(last + 1), 'LIMIT', 0, 1) == 0
  local scores, adds, gained = {}, {}, {}
  for _, t in ipairs(tasks) do
    local id, plan, due = t[1], t[2], t[3]
    local before = scores[due]
    if not before and not empty then
      before = call('ZREVRANGEBYSCORE', key, '(' .. int(due + 1), int(due), 'WITHSCORES', 'LIMIT', 0, 1)[2]
    end
    scores[due] = before and math.min(tonumber(before) + STEP, due + 1 - STEP) or due
    adds[#adds + 1] = scores[due] == due and int(due) or string.format('%.10f', scores[due])
    adds[#adds + 1] = id
    if plan.expires > 0 then call('ZADD', c.p .. 'expiry', int(plan.expires), id) end
    gained[plan.queue] = (gained[plan.queue] or 0) + 1
  end
  for queue, n in pairs(gained) do count(c, queue, 'scheduled', n) end
  call('ZADD', key, unpack(adds))
end

-- The end of a task. `keep` and `failed_keep` are the caller's configured times, ms; returns which one it is kept.
-- `fields` of the last attempt are written with the rest; `known` is {watched, o, cancel, graced}, looked up unless given.
local function close(c, id, from, to, plan, reason, worker, fields, known)
  local key = c.p .. 'task:' .. id
  local due = from == 'scheduled' and call('ZSCORE', c.p .. 'schedule', id)
  if due then call('HSET', key, 'due', int(floor(tonumber(due)))) end
  leave(c, id, from, to, plan, worker)
  c.live = c.live - 1
  known = known or call('HMGET', key, 'watched', 'o', 'cancel', 'graced')
  if known[2] then redis.pcall('ZREM', c.p .. 'owned:' .. known[2], id) end  -- what is wrong with it shall hinder no end
  if known[1] or known[2] or known[3] or known[4] then call('HDEL', key, 'cancel', 'graced', 'watched', 'o') end
  call('HSET', key, 't', to, 'finished', c.now_text, 'reason', reason, unpack(fields or {}))
  local keep = plan.keep > 0 and plan.keep or c.args.keep
  if to == 'failed' then keep = math.max(keep, c.args.failed_keep) end
  call('PEXPIRE', key, int(keep))
  call('ZADD', c.p .. 'finished:' .. to, c.now_text, id)
  c.closed[to] = true
  count(c, plan.queue, to, 1)
  if known[1] then publish(c, 'ended', id) end
  return keep
end

-- The field of an attempt's record, of which the oldest makes room.
local function attempt_field(key, number)
  if number > LIVE_ATTEMPTS then call('HDEL', key, 'attempt:' .. int(number - LIVE_ATTEMPTS)) end
  return 'attempt:' .. int(number)
end

local function record_attempt(key, number, packed)
  call('HSET', key, attempt_field(key, number), packed)
end

local function brief(number, worker, started, ended, reason)
  return cmsgpack.pack({number, worker, started, ended, reason, -1, -1, '', ''})
end

-- A failed attempt with a retry left; `fields` are written with the rest.
local function again_after(c, id, plan, worker, interval, reason, fields)
  leave(c, id, 'running', 'scheduled', plan, worker)
  enter_schedule(c, {{id, plan, c.now + interval}})
  call('HSET', c.p .. 'task:' .. id, 't', 'scheduled', 'reason', reason, unpack(fields))
  call('HDEL', c.p .. 'task:' .. id, 'graced')
  count(c, plan.queue, 'retried', 1)
end

-- An attempt given back unstarted, or lost: to ready at its old place, without its fence.
local function back_to_ready(c, id, plan, worker, place)
  leave(c, id, 'running', 'ready', plan, worker)
  local key = c.p .. 'task:' .. id
  call('HSET', key, 't', 'ready')
  call('HDEL', key, 'token', 'graced')
  enter_ready(c, {{id, plan, tonumber(place)}})
end

-- Tells every broker which queues gained tasks.
local function wake(c)
  for queue, n in pairs(c.gained) do publish(c, 'ready', queue .. ' ' .. int(n)) end
end

-- Tells every broker of a new earliest instant, if this call has put one into the schedule.
local function announce(c)
  if not c.before then return end
  local before, now = c.before[1], earliest(c)
  if now and (not before or now < before) then publish(c, 'due', int(now)) end
end
