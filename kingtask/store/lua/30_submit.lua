-- Makes the queue's name known; false if there are too many already.
local function admit(c, queue)
  local key = c.p .. 'queues'
  if call('HEXISTS', key, queue) == 1 then return true end
  if call('HLEN', key) >= c.args.max_queues then return false end
  call('HSET', key, queue, '0')
  call('HSET', c.p .. 'counts:' .. queue, 'touched', int(c.now))
  return true
end

-- How many more tasks may wait in the queue, or 'queues' if it is new and there are too many.
local function room(c, queue)
  if not admit(c, queue) then return 'queues' end
  local scheduled = tonumber(counts_of(c, queue).values.scheduled) or 0
  return c.args.max_queue_length - scheduled - call('ZCARD', c.p .. 'ready:' .. queue)
end

-- How many more tasks this client may have, and those of this call. Some that its index names by mistake (their records
-- were deleted from outside, or a release without this index has ended them) are taken off it when they are in the way.
local function owner_of(c, quota)
  local owner, most = quota[1], quota[2]
  if not c.owners[owner] then
    local key = c.p .. 'owned:' .. owner
    local n, look = redis.pcall('ZCARD', key), math.min(OWNED_LOOK, c.looks)
    local left = most - (tonumber(n) or most)  -- else it is no index: this client is refused, and nobody else
    if left <= 0 and look > 0 and tonumber(n) then
      c.looks = c.looks - look
      for _, id in ipairs(call('ZRANDMEMBER', key, look)) do
        local t = redis.pcall('HMGET', c.p .. 'task:' .. id, 't', 'o')
        if not t[1] or TERMINAL[t[1]] or t[2] ~= owner then left = left + call('ZREM', key, id) end
      end
    end
    c.owners[owner] = {left = left, adds = {}}
  end
  return c.owners[owner]
end

-- Counts the task as one of this client's; returns the fields that say so.
local function own(c, quota, id)
  local of = owner_of(c, quota)
  of.left = of.left - 1
  add(of.adds, c.now_text, id)
  return 'o', quota[1]
end

-- args {db, max_queues, max_queue_length, max_tasks, tasks = {{id, spec, plan, quota}, …}}; quota: absent, or {client,
-- how many tasks it may have that have not ended}
-- Returns {now_us, {outcome, …}, {queue, n, …}, {due, …}}; outcome: ready, scheduled, exists, conflict, full (the queue),
-- queues (too many), tasks (too many in all) or owned (too many of this client)
local function submit(keys, args)
  local c = begin(keys, args)
  local tasks = c.args.tasks
  local outcomes, dues, rooms, plans, made = {}, {}, {}, {}, {}
  local paths, ready, scheduled, stored, seen = {}, {}, {}, {}, {}
  for i, t in ipairs(tasks) do
    paths[i] = c.p .. 'task:' .. t[1]
    plans[t[3]] = plans[t[3]] or read_plan(t[3])  -- many have the same one
  end
  local some = call('EXISTS', unpack(paths)) > 0
  local first = next_places(c, #tasks)
  for i, t in ipairs(tasks) do
    local id, spec, packed, quota, key, plan = t[1], t[2], t[3], t[4], paths[i], plans[t[3]]
    local known = seen[id] or some and call('EXISTS', key) == 1
    local left = known or c.live >= c.args.max_tasks and 'tasks' or quota and owner_of(c, quota).left <= 0 and 'owned'
      or rooms[plan.queue] or room(c, plan.queue)
    if known then
      local t = seen[id] or redis.pcall('HMGET', key, 's', 'p')
      outcomes[i] = t[1] == spec and t[2] == packed and 'exists' or 'conflict'
    elseif type(left) == 'string' then
      outcomes[i] = left
    elseif left <= 0 then
      outcomes[i] = 'full'
    else
      rooms[plan.queue] = left - 1
      c.live = c.live + 1
      made[plan.queue] = (made[plan.queue] or 0) + 1
      seen[id] = {spec, packed}
      local due = plan.delay > 0 and c.now + plan.delay or plan.start
      if due > c.now then
        outcomes[i] = 'scheduled'
        dues[#dues + 1] = due
        scheduled[#scheduled + 1] = {id, plan, due}
      else
        outcomes[i] = 'ready'
        ready[#ready + 1] = {id, plan, place_of(plan, first + i)}
      end
      stored[#stored + 1] = {key, 'p', packed, 's', spec, 't', outcomes[i], 'c', c.now_text}
      if quota then add(stored[#stored], own(c, quota, id)) end
    end
  end
  enter_ready(c, ready)
  enter_schedule(c, scheduled)
  -- Last: whatever is wrong with an index, no record is there without it, which a repeated submit would find to exist.
  for _, record in ipairs(stored) do call('HSET', unpack(record)) end
  for queue, n in pairs(made) do count(c, queue, 'submitted', n) end
  settle(c)
  announce(c)
  return {c.us, outcomes, flat(c.gained), dues}
end
register('submit', submit)

-- args {db, id, new_id, max_queues, max_queue_length, max_tasks, quota}: a new task, due now, of a terminal one.
-- Returns {outcome, queue}; outcome: ready | exists | conflict | full | queues | tasks | owned | missing | <state of a
-- living one>
local function requeue(keys, args)
  local c = begin(keys, args)
  local key, new = c.p .. 'task:' .. c.args.id, c.p .. 'task:' .. c.args.new_id
  local known = call('HMGET', new, 'p', 'origin')
  if known[1] then return {known[2] == c.args.id and 'exists' or 'conflict', ''} end
  local old = call('HMGET', key, 'p', 's', 't')
  if not old[1] then return {'missing', ''} end
  if not TERMINAL[old[3]] then return {old[3], ''} end
  local plan = read_plan(old[1])
  local quota = c.args.quota
  if c.live >= c.args.max_tasks then return {'tasks', ''} end
  if quota and owner_of(c, quota).left <= 0 then return {'owned', ''} end
  local left = room(c, plan.queue)
  if left == 'queues' then return {'queues', ''} end
  if left <= 0 then return {'full', ''} end
  -- The new task starts now and is not bound by an instant that has passed.
  local a = cmsgpack.unpack(old[1])
  for _, instant in ipairs({2, 6, 8}) do a[instant] = a[instant] and 0 end  -- start, delay, expires
  while is_default(a, #a) do a[#a] = nil end
  plan.expires = 0
  call('HSET', new, 'p', cmsgpack.pack(a), 's', old[2], 't', 'ready', 'c', c.now_text, 'origin', c.args.id)
  if quota then call('HSET', new, own(c, quota, c.args.new_id)) end
  enter_ready(c, {{c.args.new_id, plan, place_of(plan, next_places(c, 1) + 1)}})
  c.live = c.live + 1
  count(c, plan.queue, 'submitted', 1)
  settle(c)
  wake(c)
  return {'ready', plan.queue}
end
register('requeue', requeue)
