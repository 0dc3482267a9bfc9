do  -- New tasks: admission and creation, shared by submit and requeue.

local NONE = {}

-- Begins a function that creates tasks.
local function begin(keys, args)
  local c = fcall.begin(keys, args)
  c.new = {
    rooms = {},        -- by queue: how many more tasks could wait in it at the beginning
    submitted = {},    -- by queue: how many tasks are created
    owners = {},       -- by owner: how many more tasks it may have (left), and index entries of new ones (adds)
    ready = {}, scheduled = {}, created = {},  -- created tasks; flush writes them
  }
  return c
end

-- How many more entries an index of an owner may get: none if it is damaged, so that this owner is refused, and no
-- other. It may have entries by mistake: what they name was deleted from outside, or a release without this index has
-- removed it. Some of them are removed when they are in the way; is_stale(member) finds them.
local function entries_left(c, index, most, is_stale)
  local n = tonumber(redis.pcall('ZCARD', index))
  local left = n and most - n or 0
  local sample = math.min(OWNED_SAMPLE, c.samples or BUDGET)
  if n and left <= 0 and sample > 0 then
    c.samples = (c.samples or BUDGET) - sample
    for _, member in ipairs(call('ZRANDMEMBER', index, sample)) do
      if is_stale(member) then left = left + call('ZREM', index, member) end
    end
  end
  return left
end

-- Makes the queue's name known; quota: as in admit. Returns nil, or the reason of the refusal.
function tasks.know_queue(c, queue, quota)
  if call('HEXISTS', key.queues, queue) == 1 then return nil end
  if call('HLEN', key.queues) >= c.args.max_queues then return 'too_many_queues' end
  local owner, _, _, _, most = unpack(quota or NONE, 1, 5)
  if most then
    local left = entries_left(c, key.named(owner), most, function(name)
      return redis.pcall('HGET', key.counts(name), 'owner') ~= owner
    end)
    if left <= 0 then return 'too_many_names' end
    call('ZADD', key.named(owner), c.now_text, queue)
  end
  call('HSET', key.queues, queue, '0')
  call('HSET', key.counts(queue), 'touched', c.now_text, unpack(most and {'owner', owner} or NONE))
end

-- How many more tasks may wait in the queue, whose name is known.
local function room_in(c, queue)
  local scheduled = tonumber(redis.pcall('HGET', key.counts(queue), 'scheduled') or 0) or 0
  return c.args.max_queue_length - scheduled - (moves.count_ready(queue) or math.huge)
end

-- The entry of c.new.owners: {left, adds}.
local function owner_of(c, owner, most)
  local owners = c.new.owners
  if not owners[owner] then
    local left = entries_left(c, key.owned(owner), most, function(id)
      local state, quota = unpack(redis.pcall('HMGET', key.task(id), STATE, QUOTA))
      return not state or TERMINAL[state] or quota ~= owner
    end)
    owners[owner] = {left = left, adds = {}}
  end
  return owners[owner]
end

-- Returns nil if a task with this plan may be created, otherwise the reason of the refusal.
-- quota: absent, or {owner, how many tasks it may have that have not ended (0: any number), whether a bound counts what
-- its ended tasks keep, for how many ms a record may be kept (0: any time), how many names of queues it may make (nil:
-- any number)}
function tasks.admit(c, plan, quota)
  local queue, new = plan.queue, c.new
  if c.live >= c.args.max_tasks then return 'too_many_tasks' end
  if quota and quota[2] > 0 and owner_of(c, quota[1], quota[2]).left <= 0 then return 'quota_exceeded' end
  if not new.rooms[queue] then
    local refusal = tasks.know_queue(c, queue, quota)
    if refusal then return refusal end
    new.rooms[queue] = room_in(c, queue)
  end
  if new.rooms[queue] <= (new.submitted[queue] or 0) then return 'queue_full' end
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
