do  -- Moves: each leaves every key of the task consistent.

-- A row: id, path (the task's key), plan; place or due, for its next index; and fields of the record under their names,
-- false if absent, nil if not read. A move needs the STATE before it and, of a running task, the worker.

-- Reads these fields of a task, PLAN among them. An index that has the task knows its state.
function moves.read(id, fields, state)
  local path = key.task(id)
  local task, values = {id = id, path = path, [STATE] = state}, call('HMGET', path, unpack(fields))
  for i = 1, #fields do task[fields[i]] = values[i] end
  task.plan = plans.read(task[PLAN])
  return task
end

-- Removes a task from the indexes of the state that it leaves.
local function leave(c, task, to)
  local id, plan, from = task.id, task.plan, task[STATE]
  if not (TRANSITIONS[from] and TRANSITIONS[from][to]) then
    error('KINGTASK no transition from ' .. tostring(from) .. ' to ' .. to)
  end
  if from == 'running' then
    call('ZREM', key.running, id)
    redis.pcall('HDEL', key.held(task.worker), id)  -- if it is damaged, it must not block the move
    counts.add(c, plan.queue, 'running', -1)
    return
  end
  if from == 'scheduled' then
    call('ZREM', key.schedule, id)
    counts.add(c, plan.queue, 'scheduled', -1)
  else
    call('ZREM', key.ready(plan.queue), id)
  end
  if plan.expires > 0 then call('ZREM', key.expiry, id) end
end

-- The place in ready of a task that becomes ready now: by priority, then first in first out.
function moves.next_place(c, plan)
  c.sequence = c.sequence + 1
  return (9 - plan.priority) * BAND + c.sequence
end

-- Takes rows {id, plan, place}. One ZADD for each queue: one for each task would cost as much as the rest of a submit.
function moves.enter_ready(c, rows)
  local by_queue = {}
  for _, task in ipairs(rows) do
    local plan = task.plan
    local adds = by_queue[plan.queue]
    if not adds then
      adds = {}
      by_queue[plan.queue] = adds
    end
    local n = #adds
    adds[n + 1], adds[n + 2] = task.place, task.id
    if plan.expires > 0 then call('ZADD', key.expiry, int(plan.expires), task.id) end
  end
  for queue, adds in pairs(by_queue) do
    call('ZADD', key.ready(queue), unpack(adds))
    c.gained[queue] = (c.gained[queue] or 0) + #adds / 2
  end
end

-- How many tasks are ready in this queue; nil if its index is damaged.
function moves.count_ready(queue) return tonumber(redis.pcall('ZCARD', key.ready(queue))) end

-- The first instant of the schedule, or false.
local function earliest()
  local _, due = unpack(call('ZRANGE', key.schedule, 0, 0, 'WITHSCORES'))
  return due and floor(tonumber(due)) or false
end

-- Takes rows {id, plan, due} in order of submission, which the scores keep.
function moves.enter_schedule(c, rows)
  if #rows == 0 then return end
  local index, first, last = key.schedule, math.huge, 0
  if c.earliest == nil then c.earliest = earliest() end
  for _, task in ipairs(rows) do
    first = math.min(first, task.due)
    last = math.max(last, task.due)
  end
  local empty = #call('ZRANGEBYSCORE', index, int(first), '(' .. int(last + 1), 'LIMIT', 0, 1) == 0
  local scores, adds, gained = {}, {}, {}
  for _, task in ipairs(rows) do
    local id, plan, due = task.id, task.plan, task.due
    local before = scores[due]
    if not before and not empty then
      local _, score =
        unpack(call('ZREVRANGEBYSCORE', index, '(' .. int(due + 1), int(due), 'WITHSCORES', 'LIMIT', 0, 1))
      before = tonumber(score)
    end
    local score = before and math.min(before + STEP, due + 1 - STEP) or due
    scores[due] = score
    add(adds, score == due and int(due) or string.format('%.10f', score), id)
    if plan.expires > 0 then call('ZADD', key.expiry, int(plan.expires), id) end
    gained[plan.queue] = (gained[plan.queue] or 0) + 1
  end
  call('ZADD', index, unpack(adds))
  for queue, n in pairs(gained) do counts.add(c, queue, 'scheduled', n) end
end

-- Ends a task; `fields` of its last attempt are written with the rest.
function moves.close(c, task, to, reason, fields)
  local id, path, plan = task.id, task.path, task.plan
  local keep = plan.keep > 0 and plan.keep or c.args.keep
  if to == 'failed' then keep = math.max(keep, c.args.failed_keep) end
  fields = fields or {}
  local due = task[STATE] == 'scheduled' and call('ZSCORE', key.schedule, id)
  if due then add(fields, 'due', int(floor(tonumber(due)))) end
  local watched, quota, cancel, graced, given, limits =
    task.watched, task[QUOTA], task.cancel, task.graced, task[GIVEN], task[LIMITS]
  if watched == nil then
    watched, quota, cancel, graced, given, limits =
      unpack(call('HMGET', path, 'watched', QUOTA, 'cancel', 'graced', GIVEN, LIMITS))
  end
  leave(c, task, to)
  keep = outputs.collect(c, task, to, keep, given, limits)
  c.live = c.live - 1
  -- By pcall: these two indexes limit and list tasks; if they are damaged, they must not block the end.
  if quota then redis.pcall('ZREM', key.owned(quota), id) end
  redis.pcall('ZADD', key.finished(to), c.now_text, id)
  if watched or quota or cancel or graced then call('HDEL', path, 'cancel', 'graced', 'watched', QUOTA) end
  call('HSET', path, STATE, to, 'finished', c.now_text, 'reason', reason, unpack(fields))
  call('PEXPIRE', path, int(keep))
  c.closed[to] = true
  counts.add(c, plan.queue, to, 1)
  if watched then fcall.publish(c, 'ended', id) end
end

-- Ends a waiting task that may not be started any more; returns whether it did.
function moves.expire(c, task)
  local expires = task.plan.expires
  if expires == 0 or expires > c.now then return false end
  moves.close(c, task, 'expired', 'expires_at')
  return true
end

-- The field of an attempt's record. The oldest record makes room for it.
function moves.attempt_field(path, number)
  if number > LIVE_ATTEMPTS then call('HDEL', path, 'attempt:' .. int(number - LIVE_ATTEMPTS)) end
  return 'attempt:' .. int(number)
end

-- Records an attempt that did not end by itself. packed: the worker's record, or nil.
function moves.record_attempt(c, task, reason, packed)
  local number = tonumber(task.attempt)
  packed = packed or cmsgpack.pack({number, task.worker, tonumber(task.claimed), c.now, reason, -1, -1, '', ''})
  call('HSET', task.path, moves.attempt_field(task.path, number), packed)
end

-- A failed attempt with a retry left; `fields` are written with the rest. The new index comes first: if it is damaged,
-- the attempt stays as it was.
function moves.retry(c, task, interval, reason, fields)
  task.due = c.now + interval
  moves.enter_schedule(c, {task})
  leave(c, task, 'scheduled')
  call('HSET', task.path, STATE, 'scheduled', 'reason', reason, unpack(fields))
  call('HDEL', task.path, 'graced')
  counts.add(c, task.plan.queue, 'retried', 1)
end

-- Rows of one queue, from scheduled to ready. The new index comes first, as in retry.
function moves.promote(c, queue, rows)
  moves.enter_ready(c, rows)
  local ids = {}
  for i, task in ipairs(rows) do
    ids[i] = task.id
    call('HSET', task.path, STATE, 'ready', 'due', int(task.due))
  end
  call('ZREM', key.schedule, unpack(ids))
  counts.add(c, queue, 'scheduled', -#ids)
end

-- An attempt that was given back unstarted, or lost: to ready at its old place, without its fence. The new index comes
-- first, as in retry.
function moves.back_to_ready(c, task)
  task.place = tonumber(task.place) or moves.next_place(c, task.plan)  -- a damaged place: the last one
  moves.enter_ready(c, {task})
  leave(c, task, 'ready')
  call('HSET', task.path, STATE, 'ready')
  call('HDEL', task.path, 'token', 'graced')
end

-- Notifies every broker of the queues that gained tasks.
function moves.wake(c)
  for queue, n in pairs(c.gained) do fcall.publish(c, 'ready', queue .. ' ' .. int(n)) end
end

-- Notifies every broker of a new earliest instant, if this call added one to the schedule.
function moves.announce(c)
  if c.earliest == nil then return end
  local now = earliest()
  if now and (not c.earliest or now < c.earliest) then fcall.publish(c, 'due', int(now)) end
end

end
