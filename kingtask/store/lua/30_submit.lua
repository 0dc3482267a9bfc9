do  -- New tasks: admission and creation, shared by submit and requeue.

local NONE = {}

-- Begins a function that creates tasks.
local function begin(keys, args)
  local c = fcall.begin(keys, args)
  c.new = {
    rooms = {},        -- by queue: how many more tasks could wait in it at the beginning
    submitted = {},    -- by queue: how many tasks are created
    owners = {},       -- by owner: how many more tasks it may have (left), and index entries of new ones (adds)
    samples = BUDGET,  -- records of owners' tasks that may still be examined
    ready = {}, scheduled = {}, created = {},  -- created tasks; flush writes them
  }
  return c
end

-- Makes the queue's name known; false if there are too many queues already.
function tasks.know_queue(c, queue)
  if call('HEXISTS', key.queues, queue) == 1 then return true end
  if call('HLEN', key.queues) >= c.args.max_queues then return false end
  call('HSET', key.queues, queue, '0')
  call('HSET', key.counts(queue), 'touched', c.now_text)
  return true
end

-- The entry of c.new.rooms; false if the queue is new and there are too many.
local function enter_queue(c, queue)
  local room = tasks.know_queue(c, queue)
  if room then
    local scheduled = tonumber(redis.pcall('HGET', key.counts(queue), 'scheduled') or 0) or 0
    room = c.args.max_queue_length - scheduled - (moves.count_ready(queue) or math.huge)
  end
  c.new.rooms[queue] = room
  return room
end

-- The entry of c.new.owners: {left, adds}. An owner's index may name tasks by mistake: their records were deleted from
-- outside, or a release without this index has ended them. Some are removed from the index when they are in the way.
local function owner_of(c, owner, most)
  local new = c.new
  local of = new.owners[owner]
  if of then return of end
  local index = key.owned(owner)
  local owned = tonumber(redis.pcall('ZCARD', index))
  local left = owned and most - owned or 0  -- if it is no index, this owner is refused, and no other
  local sample = math.min(OWNED_SAMPLE, new.samples)
  if owned and left <= 0 and sample > 0 then
    new.samples = new.samples - sample
    for _, id in ipairs(call('ZRANDMEMBER', index, sample)) do
      local state, quota = unpack(redis.pcall('HMGET', key.task(id), STATE, QUOTA))
      if not state or TERMINAL[state] or quota ~= owner then left = left + call('ZREM', index, id) end
    end
  end
  of = {left = left, adds = {}}
  new.owners[owner] = of
  return of
end

-- Returns nil if a task with this plan may be created, otherwise the reason of the refusal.
-- quota: absent, or {owner, how many tasks it may have that have not ended (0: any number), whether a bound counts what
-- its ended tasks keep, for how many ms a record may be kept (0: any time)}
function tasks.admit(c, plan, quota)
  local queue, new = plan.queue, c.new
  if c.live >= c.args.max_tasks then return 'too_many_tasks' end
  if quota and quota[2] > 0 and owner_of(c, unpack(quota, 1, 2)).left <= 0 then return 'quota_exceeded' end
  local room = new.rooms[queue]
  if room == nil then room = enter_queue(c, queue) end
  if not room then return 'too_many_queues' end
  if room <= (new.submitted[queue] or 0) then return 'queue_full' end
end

-- Creates an admitted task {id, path, plan, spec, owner, quota, more}; returns its state. The last three may be absent;
-- more has further fields of its record. A call of flush must follow: it writes what is collected here.
function tasks.create(c, task)
  local plan, new = task.plan, c.new
  local due, queue = plan.delay > 0 and c.now + plan.delay or plan.start, plan.queue
  c.live = c.live + 1
  new.submitted[queue] = (new.submitted[queue] or 0) + 1
  new.created[#new.created + 1] = task
  local given = #task.spec
  if task.owner or task.quota or given >= GIVEN_BYTES then task.more = task.more or {} end
  if task.owner then add(task.more, OWNER, task.owner) end
  if given >= GIVEN_BYTES then add(task.more, GIVEN, int(given)) end
  if task.quota then
    local owner, most, bounded, longest = unpack(task.quota)
    if most > 0 then
      local of = new.owners[owner]
      of.left = of.left - 1
      add(of.adds, c.now_text, task.id)
      add(task.more, QUOTA, owner)
    end
    local limits = (longest > 0 and int(longest) or '') .. (bounded and ' ' .. owner or '')
    if limits ~= '' then add(task.more, LIMITS, limits) end
  end
  if due > c.now then
    task[STATE], task.due = 'scheduled', due
    new.scheduled[#new.scheduled + 1] = task
  else
    task[STATE], task.place = 'ready', moves.next_place(c, plan)
    new.ready[#new.ready + 1] = task
  end
  return task[STATE]
end

-- Writes the created tasks: each index once, then the records. In this order, whatever is wrong with an index, there is
-- no record without its entry: a repeated submit would find that the task exists.
function tasks.flush(c)
  local new = c.new
  moves.enter_ready(c, new.ready)
  moves.enter_schedule(c, new.scheduled)
  for owner, of in pairs(new.owners) do
    if #of.adds > 0 then call('ZADD', key.owned(owner), unpack(of.adds)) end
  end
  for _, task in ipairs(new.created) do
    local plan = task.plan
    call('HSET', task.path, PLAN, plan.packed, SPEC, task.spec, STATE, task[STATE], CREATED, c.now_text,
      unpack(task.more or NONE))
  end
  for queue, n in pairs(new.submitted) do counts.add(c, queue, 'submitted', n) end
end

-- The SPEC of a record is this one, or the digest of it: it was dropped.
local function is_spec(stored, spec)
  return stored == spec or stored and #stored == 40 and stored == redis.sha1hex(spec)
end

-- args {db, max_queues, max_queue_length, max_tasks, tasks = {{id, spec, plan, quota, owner}, …}}; quota: as in admit;
-- owner: absent if anonymous. The task of another owner is a conflict, whatever it is: the client learns nothing of it.
-- Returns {now_us, {outcome, …}, {queue, n, …}, {due, …}}; outcome: ready, scheduled, exists, conflict, or as of admit.
local function submit(keys, args)
  local c = begin(keys, args)
  local requested, paths, read = {}, {}, {}
  for i, row in ipairs(c.args.tasks) do
    local id, spec, packed, quota, owner = unpack(row, 1, 5)
    local plan = read[packed] or plans.read(packed)  -- many tasks have the same plan
    read[packed], paths[i] = plan, key.task(id)
    requested[i] = {id = id, path = paths[i], plan = plan, spec = spec, quota = quota, owner = owner or false}
  end
  local some_exist = call('EXISTS', unpack(paths)) > 0
  local created, outcomes, dues = {}, {}, {}
  for i, task in ipairs(requested) do
    local known = created[task.id]
    if known then
      known = {known.spec, known.plan.packed, known.owner}
    elseif some_exist and call('EXISTS', task.path) == 1 then
      known = redis.pcall('HMGET', task.path, SPEC, PLAN, OWNER)
    end
    if known then
      local spec, packed, owner = unpack(known)
      local same = packed == task.plan.packed and owner == task.owner and is_spec(spec, task.spec)
      outcomes[i] = same and 'exists' or 'conflict'
    else
      local refusal = tasks.admit(c, task.plan, task.quota)
      if not refusal then created[task.id] = task end
      outcomes[i] = refusal or tasks.create(c, task)
      if task.due then dues[#dues + 1] = task.due end
    end
  end
  tasks.flush(c)
  if #c.new.created == 0 then c.sequence = c.sequence + 1 end  -- WAIT covers only what its own connection wrote
  fcall.settle(c)
  moves.announce(c)
  return {c.us, outcomes, flat(c.gained), dues}
end
register('submit', submit)  -- no flag: it adds work

-- Begins a call by id: 'missing', 'foreign', or nil if the argument `of` is absent or the owner of the task. The client
-- must not tell the first two apart, nor by the time: they take one path, and nothing else of the task is read before.
function tasks.hidden(c)
  local of = c.args.of
  if not of then return nil end
  local state, owner = unpack(call('HMGET', key.task(c.args.id), STATE, OWNER))
  return not state and 'missing' or owner ~= of and 'foreign' or nil
end

-- args {db, id, new_id, of, max_queues, max_queue_length, max_tasks, quota}: a new task, due now, of a terminal one.
-- Returns {outcome, queue}; outcome: ready, exists, conflict, of hidden, the state of a living one, dropped (its SPEC
-- was), or as of admit.
local function requeue(keys, args)
  local c = begin(keys, args)
  local id, path = c.args.new_id, key.task(c.args.new_id)
  local known, origin, owner = unpack(call('HMGET', path, PLAN, 'origin', OWNER))
  if known then
    local same = origin == c.args.id and (not c.args.of or owner == c.args.of)
    return {same and 'exists' or 'conflict', ''}
  end
  local hidden = tasks.hidden(c)
  if hidden then return {hidden, ''} end
  local packed, spec, state, owner, given =
    unpack(call('HMGET', key.task(c.args.id), PLAN, SPEC, STATE, OWNER, GIVEN))
  if not packed then return {'missing', ''} end
  if not TERMINAL[state] then return {state, ''} end
  if given == '0' then return {'dropped', ''} end
  local plan, quota = plans.read_for_now(packed), c.args.quota
  local refusal = tasks.admit(c, plan, quota)
  if refusal then return {refusal, ''} end
  tasks.create(c, {id = id, path = path, plan = plan, spec = spec, owner = owner, quota = quota,
    more = {'origin', c.args.id}})
  tasks.flush(c)
  fcall.settle(c)
  moves.wake(c)
  return {'ready', plan.queue}
end
register('requeue', requeue)  -- no flag: it adds work

end
