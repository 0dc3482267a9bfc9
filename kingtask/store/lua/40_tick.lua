local function promote(c)
  local index = c.p .. 'schedule'
  local found = call('ZRANGEBYSCORE', index, '-inf', '(' .. int(c.now + 1), 'WITHSCORES', 'LIMIT', 0, BUDGET)
  local ids, dues = {}, {}
  for i = 1, #found, 2 do
    ids[#ids + 1] = found[i]
    dues[#dues + 1] = floor(tonumber(found[i + 1]))
  end
  if #ids == 0 then return 0 end
  local first, ready = next_places(c, #ids), {}
  call('HSET', c.p .. 'meta', 'sequence', int(c.sequence))  -- at once: should this tick fail, they are not given again
  each(index, ids, function(id, i)
    local key = c.p .. 'task:' .. id
    local plan = read_plan(call('HGET', key, 'p'))
    if plan.expires > 0 and plan.expires <= c.now then
      close(c, id, 'scheduled', 'expired', plan, 'expires_at')
      return
    end
    leave(c, id, 'scheduled', 'ready', plan)
    call('HSET', key, 't', 'ready', 'due', int(dues[i]))
    ready[#ready + 1] = {id, plan, place_of(plan, first + i)}
  end)
  enter_ready(c, ready)
  return #ids
end

-- Returns how many leases had ended, and the attempts that are lost: {{id, number, queue, worker}, …}.
local function reap(c)
  local index = c.p .. 'running'
  local ids = call('ZRANGEBYSCORE', index, '-inf', int(c.now), 'LIMIT', 0, BUDGET)
  local forgiven = tonumber(call('HGET', c.p .. 'meta', 'returned') or 0) + c.args.lease
  local lost = {}
  each(index, ids, function(id)
    local key = c.p .. 'task:' .. id
    local t = call('HMGET', key, 'p', 'attempt', 'worker', 'claimed', 'place', 'lost', 'graced', 'cancel')
    local plan, number, worker = read_plan(t[1]), tonumber(t[2]), t[3]
    if c.now < forgiven and tonumber(t[7] or 0) < MAX_GRACED then
      call('ZADD', index, int(forgiven), id)
      call('HINCRBY', key, 'graced', 1)
      return
    end
    record_attempt(key, number, brief(number, worker, tonumber(t[4]), c.now, 'lost'))
    call('HDEL', key, 'token')
    count(c, plan.queue, 'lost', 1)
    local times = tonumber(call('HINCRBY', key, 'lost', 1))
    if t[8] then
      close(c, id, 'running', 'cancelled', plan, 'lost', worker)
    elseif plan.fail_if_lost or times >= c.args.max_lost then
      close(c, id, 'running', 'failed', plan, 'lost', worker)
    else
      back_to_ready(c, id, plan, worker, t[5])
    end
    lost[#lost + 1] = {id, number, plan.queue, worker}
  end)
  return #ids, lost
end

local function expire(c)
  local index = c.p .. 'expiry'
  local ids = call('ZRANGEBYSCORE', index, '-inf', int(c.now), 'LIMIT', 0, BUDGET)
  each(index, ids, function(id)
    local t = call('HMGET', c.p .. 'task:' .. id, 't', 'p')
    close(c, id, t[1], 'expired', read_plan(t[2]), 'expires_at')
  end)
  return #ids
end

local function forget_peers(c, kind, names)
  if #names == 0 then return end
  call('HDEL', c.p .. kind, unpack(names))
  call('ZREM', c.p .. kind .. ':seen', unpack(names))
end

-- Keeps a heartbeat; one under a new name too many costs the one that was silent longest its place.
local function hear(c, kind, name, heartbeat)
  local seen = c.p .. kind .. ':seen'
  call('HSET', c.p .. kind, name, string.format('%013.0f', c.now) .. heartbeat)
  if call('ZADD', seen, c.now_text, name) == 1 then
    local excess = math.min(call('ZCARD', seen) - PEERS_CAP, BUDGET)
    if excess > 0 then forget_peers(c, kind, call('ZRANGE', seen, 0, excess - 1)) end
  end
end

local function forget_silent(c, kind)
  local seen = c.p .. kind .. ':seen'
  forget_peers(c, kind, call('ZRANGEBYSCORE', seen, '-inf', '(' .. int(c.now - HEARTBEAT_TTL), 'LIMIT', 0, BUDGET))
  -- One of the two was damaged from outside: begun anew, who lives is heard again within seconds.
  if call('HLEN', c.p .. kind) ~= call('ZCARD', seen) then call('DEL', c.p .. kind, seen) end
end

-- The number of living tasks by what the indexes hold: the counter may have missed what was damaged from outside. With
-- many queues less often, with very many not at all.
local function recount(c)
  local n = call('HLEN', c.p .. 'queues')
  if n > RECOUNT_QUEUES or floor(c.now / 1000) % math.ceil(math.max(n, 1) / BUDGET) ~= 0 then return end
  local live = call('ZCARD', c.p .. 'schedule') + call('ZCARD', c.p .. 'running')
  for _, queue in ipairs(call('HKEYS', c.p .. 'queues')) do live = live + call('ZCARD', c.p .. 'ready:' .. queue) end
  c.live = live
end

-- Once a second: entries of vanished records, silent peers and long-empty queues are forgotten.
local function housekeep(c)
  for state in pairs(TERMINAL) do
    local key = c.p .. 'finished:' .. state
    each(key, call('ZRANGE', key, 0, 19), function(id)
      if call('HGET', c.p .. 'task:' .. id, 't') ~= state then call('ZREM', key, id) end  -- gone, or its id reused
    end)
  end
  forget_silent(c, 'workers')
  forget_silent(c, 'brokers')
  recount(c)
  local queue = call('HRANDFIELD', c.p .. 'queues')
  if queue and call('HGET', c.p .. 'queues', queue) == '0' and call('EXISTS', c.p .. 'ready:' .. queue) == 0 then
    local t = call('HMGET', c.p .. 'counts:' .. queue, 'scheduled', 'running', 'touched')
    local busy = tonumber(t[1] or 0) + tonumber(t[2] or 0)
    if busy == 0 and tonumber(t[3] or 0) < c.now - IDLE_QUEUE then
      call('HDEL', c.p .. 'queues', queue)
      call('DEL', c.p .. 'counts:' .. queue)
    end
  end
end

-- args {db, broker, heartbeat, keep, failed_keep, lease, max_lost, max_result_bytes, upcoming, window, housekeep}
-- Returns {now_us, {queue, n, …}, {instant ms, …}, complete, more, lost, as reap has them}: instants are the earliest `upcoming` within
-- `window` ms, complete = 1 if there are no further ones in it; more = 1 if work was left for another tick.
local function tick(keys, args)
  local c = begin(keys, args)
  local a = c.args
  local ticked = tonumber(call('HGET', c.p .. 'meta', 'ticked') or 0)
  if ticked > 0 and c.now - ticked > OUTAGE then call('HSET', c.p .. 'meta', 'returned', int(c.now)) end
  call('HSET', c.p .. 'meta', 'ticked', c.now_text, 'max_kept', int(a.max_result_bytes))
  local moved = promote(c)
  local reaped, lost = reap(c)
  local late = expire(c)
  local vanished = forget_vanished(c)
  local dropped = drop_outputs(c, a.max_result_bytes)
  if a.housekeep == 1 then
    hear(c, 'brokers', a.broker, a.heartbeat)
    housekeep(c)
  end
  settle(c)
  local found = call('ZRANGEBYSCORE', c.p .. 'schedule', '-inf', '(' .. int(c.now + a.window + 1),
    'WITHSCORES', 'LIMIT', 0, a.upcoming)
  local upcoming, last = {}, -1
  for i = 2, #found, 2 do
    local due = floor(tonumber(found[i]))
    if due ~= last then upcoming[#upcoming + 1] = due; last = due end
  end
  local more = math.max(moved, reaped, late, vanished, dropped) == BUDGET
  return {c.us, flat(c.gained), upcoming, #found / 2 < a.upcoming and 1 or 0, more and 1 or 0, lost}
end
register('tick', tick, 'allow-oom')
