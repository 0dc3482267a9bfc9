do  -- tick: everything that time causes. Each part handles BUDGET entries at most.

-- Moves due tasks to ready, or expires them. Returns how many there were.
local function promote(c)
  local ids, dues = split(
    call('ZRANGEBYSCORE', key.schedule, '-inf', '(' .. int(c.now + 1), 'WITHSCORES', 'LIMIT', 0, BUDGET))
  if #ids == 0 then return 0 end
  -- At once, so that their places are not given again if this tick fails.
  call('HSET', key.meta, 'sequence', int(c.sequence + #ids))
  local ready = {}  -- by queue
  fcall.each(c, key.schedule, ids, function(id, i)
    local path = key.task(id)
    local plan = plans.read(call('HGET', path, PLAN))
    local task = {id = id, path = path, plan = plan, due = floor(tonumber(dues[i])), [STATE] = 'scheduled'}
    if moves.expire(c, task) then return end
    local rows = ready[plan.queue] or {}
    ready[plan.queue], task.place = rows, moves.next_place(c, plan)
    rows[#rows + 1] = task
  end)
  for queue, rows in pairs(ready) do
    local ok, problem = pcall(moves.promote, c, queue, rows)
    if not ok then  -- its index is damaged: its tasks are tried again later, since they must not fill each tick
      fcall.failed(c, 'tick', queue, problem)
      for _, task in ipairs(rows) do call('ZADD', key.schedule, int(c.now + c.args.lease), task.id) end
    end
  end
  return #ids
end

-- Ends attempts whose lease has ended. Returns how many there were, and the lost ones {{id, number, queue, worker}, …}.
local function reap(c)
  local ids = call('ZRANGEBYSCORE', key.running, '-inf', int(c.now), 'LIMIT', 0, BUDGET)
  local forgiven = tonumber(call('HGET', key.meta, 'returned') or 0) + c.args.lease
  local lost = {}
  fcall.each(c, key.running, ids, function(id)
    local task = moves.read(id, {PLAN, 'attempt', 'worker', 'claimed', 'place', 'cancel', 'graced'}, 'running')
    local number, queue = assert(tonumber(task.attempt), 'the attempt is damaged'), task.plan.queue
    if c.now < forgiven and tonumber(task.graced or 0) < MAX_GRACED then
      call('ZADD', key.running, int(forgiven), id)
      call('HINCRBY', task.path, 'graced', 1)
      return
    end
    if not moves.count_ready(queue) then return call('ZADD', key.running, int(c.now + c.args.lease), id) end
    moves.record_attempt(c, task, 'lost')
    call('HDEL', task.path, 'token')
    counts.add(c, queue, 'lost', 1)
    local times = call('HINCRBY', task.path, 'lost', 1)
    if task.cancel then
      moves.close(c, task, 'cancelled', 'lost')
    elseif task.plan.fail_if_lost or times >= c.args.max_lost then
      moves.close(c, task, 'failed', 'lost')
    else
      moves.back_to_ready(c, task)
    end
    lost[#lost + 1] = {id, number, queue, task.worker}
  end)
  return #ids, lost
end

local function expire(c)
  local ids = call('ZRANGEBYSCORE', key.expiry, '-inf', int(c.now), 'LIMIT', 0, BUDGET)
  fcall.each(c, key.expiry, ids, function(id)
    moves.close(c, moves.read(id, {STATE, PLAN}), 'expired', 'expires_at')
  end)
  return #ids
end

local function forget_peers(kind, names)
  if #names == 0 then return end
  call('HDEL', key.peers(kind), unpack(names))
  call('ZREM', key.seen(kind), unpack(names))
end

-- Stores a heartbeat. A new name above the cap removes the peer that was silent longest.
function peers.hear(c, kind, name, heartbeat)
  local seen = key.seen(kind)
  call('HSET', key.peers(kind), name, string.format('%013.0f', c.now) .. heartbeat)
  if call('ZADD', seen, c.now_text, name) == 1 then
    local excess = math.min(call('ZCARD', seen) - PEERS_CAP, BUDGET)
    if excess > 0 then forget_peers(kind, call('ZRANGE', seen, 0, excess - 1)) end
  end
end

local function forget_silent(c, kind)
  local seen = key.seen(kind)
  forget_peers(kind, call('ZRANGEBYSCORE', seen, '-inf', '(' .. int(c.now - HEARTBEAT_TTL), 'LIMIT', 0, BUDGET))
  -- If they differ, one was damaged from outside. Both start again empty: living peers are back within seconds.
  if call('HLEN', key.peers(kind)) ~= call('ZCARD', seen) then call('DEL', key.peers(kind), seen) end
end

-- Sets the number of living tasks to what the indexes hold: damage from outside may have escaped the counter. With many
-- queues this happens less often, with very many never.
local function recount(c)
  local n = call('HLEN', key.queues)
  if n > RECOUNT_QUEUES or floor(c.now / 1000) % math.ceil(math.max(n, 1) / BUDGET) ~= 0 then return end
  local live = call('ZCARD', key.schedule) + call('ZCARD', key.running)
  for _, queue in ipairs(call('HKEYS', key.queues)) do live = live + (moves.count_ready(queue) or 0) end
  c.live = live
end

-- Forgets one queue, chosen at random, if it is not paused and has been empty for long.
local function forget_idle_queue(c)
  local queue = call('HRANDFIELD', key.queues)
  if not queue or call('HGET', key.queues, queue) ~= '0' or call('EXISTS', key.ready(queue)) == 1 then return end
  local scheduled, running, touched, owner =
    unpack(redis.pcall('HMGET', key.counts(queue), 'scheduled', 'running', 'touched', 'owner'))
  if tonumber(scheduled or 0) + tonumber(running or 0) > 0 then return end
  if tonumber(touched or 0) < c.now - IDLE_QUEUE then
    call('HDEL', key.queues, queue)
    call('DEL', key.counts(queue))
    if owner then redis.pcall('ZREM', key.named(owner), queue) end
  end
end

-- Once a second: forgets entries of vanished records, silent peers and long-empty queues.
local function housekeep(c)
  for state in pairs(TERMINAL) do
    local index = key.finished(state)
    fcall.each(c, index, redis.pcall('ZRANGE', index, 0, 19), function(id)
      if call('HGET', key.task(id), STATE) ~= state then call('ZREM', index, id) end  -- gone, or its id used again
    end)
  end
  forget_silent(c, 'workers')
  forget_silent(c, 'brokers')
  recount(c)
  forget_idle_queue(c)
end

-- The earliest instants of the schedule within the window, and whether these are all.
local function upcoming(c, window, limit)
  local last_ms = '(' .. int(c.now + window + 1)
  local found = call('ZRANGEBYSCORE', key.schedule, '-inf', last_ms, 'WITHSCORES', 'LIMIT', 0, limit)
  local instants, last = {}, nil
  for i = 2, #found, 2 do
    local due = floor(tonumber(found[i]))
    if due ~= last then instants[#instants + 1] = due end
    last = due
  end
  return instants, #found / 2 < limit
end

-- args {db, broker, heartbeat, keep, failed_keep, lease, max_lost, max_result_bytes, bounds (of outputs.bound),
-- upcoming, window, housekeep}
-- Returns {now_us, {queue, n, …}, {instant ms, …}, complete, more, lost as of reap}: the earliest `upcoming` instants
-- within `window` ms; complete = 1 if there are no others in it; more = 1 if work was left for another tick.
local function tick(keys, args)
  local c = fcall.begin(keys, args)
  local a = c.args
  local ticked = tonumber(call('HGET', key.meta, 'ticked') or 0)
  if ticked > 0 and c.now - ticked > OUTAGE then call('HSET', key.meta, 'returned', c.now_text) end
  call('HSET', key.meta, 'ticked', c.now_text, 'max_kept', int(a.max_result_bytes))
  local promoted = promote(c)
  local reaped, lost = reap(c)
  local expired = expire(c)
  outputs.keep(c)
  local vanished = outputs.forget_vanished(c)
  local bounded = outputs.bound(c, a.bounds)
  local dropped = outputs.drop(c, a.max_result_bytes)
  if a.housekeep == 1 then
    peers.hear(c, 'brokers', a.broker, a.heartbeat)
    housekeep(c)
  end
  fcall.settle(c)
  local instants, complete = upcoming(c, a.window, a.upcoming)
  local more = math.max(promoted, reaped, expired, vanished, bounded, dropped) >= BUDGET
  return {c.us, flat(c.gained), instants, complete and 1 or 0, more and 1 or 0, lost}
end
register('tick', tick, 'allow-oom')  -- it moves and ends stored tasks, and drops what they keep

end
