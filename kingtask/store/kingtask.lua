#!lua name=kingtask_@HASH@
--[[
The store: every change of a task's state is one call of one function below, and nothing else writes these keys.

Rules
  * Check everything, then write: an error never leaves half a change.
  * Every function may be sent again: tasks are keyed by id, attempts by number and token.
  * TIME is read once per call. Due instants and leases are compared here only.
  * A call works on at most some 200 items (10,000 moves block the server for 100 ms); callers split what is longer.
  * A record that was deleted or damaged from outside costs that task, never the other tasks of a call.
  * Numbers go into text with %.0f: `..` would round 16 digits to 14.

Keys, all behind the prefix `{<namespace>}:` (one hash slot), of which KEYS[1] is `{<namespace>}:meta`
  task:<id>        hash   the task, fields below; no TTL while it lives, then the time its record is kept
  schedule         zset   id → due ms, plus a fraction that keeps submission order among the first 1,023 of that ms
  ready:<queue>    zset   id → place: (9 - priority) * 2^48 + sequence, so by priority, then first in first out
  running          zset   id → end of the lease, ms
  expiry           zset   id → ms; waiting tasks that may not be started after an instant
  owned:<client>   zset   id → when accepted, ms; its tasks that have not ended, if their number is limited
  held:<worker>    hash   id → attempt number ':' number of the claim ':' token; what a worker was given (TTL)
  finished:<state> zset   id → ms; recent terminal tasks, capped
  outputs:ended    zset   id, ms its task ended, ':', bytes → that ms; outputs kept, the oldest are dropped first
  outputs:until    zset   the same → ms its record vanishes; both are taken off at that time
  queues           hash   queue → '0', or '1' when paused; at most max_queues
  counts:<queue>   hash   totals, the numbers now `scheduled` and `running`, `touched` (ms), and as msgpack maps of totals
                          `began` and `before`: when the minute of that instant began, and the minute before it
  workers, brokers hash   name → heartbeat: ms as 13 digits, then an opaque blob; capped
  workers:seen, brokers:seen  zset   name → ms of that heartbeat
  meta             hash   schema, cluster, sequence (of places), ticked (ms), returned (ms: end of an outage),
                          live (tasks that have not ended), kept (bytes of outputs), max_kept (as the last tick said)

Fields of task:<id>
  p (the plan)     msgpack array {name, start, retry, queue, priority, delay, keep, expires, on_lost}, as sent, in ms;
                   0 = absent, queue '' = default, on_lost 1 = fail; what is default at its end is left out
  s (the spec)     as sent, opaque here (arguments, stdin, …). Plan and spec are the identity of a request: the same id
                   with the same two is the same request sent again.
  t (the state), c (when created, ms)   a waiting task has no more than these four, of one letter each: of ten million
                   waiting tasks every letter is 10 MB, and every further argument of a call costs time, too
  due              ms; absent while scheduled, the score says it; and if never scheduled: its start or c then
  attempt, token, worker, claimed, place   the fence of the last claim, when that was, and its place in ready then
                                    (they stay when it has ended: to take them off would be one more call)
  failures, lost, graced            attempts that failed; that were presumed lost; outages forgiven to this attempt
  cancel, watched                   '1': cancel was asked for; a client waits for the end
  o (the owner)                     the client, if the number of its tasks is limited; until the task ends
  attempt:<n>      msgpack array {n, worker, started, ended, reason, exit, signal, message, stderr}; -1 = absent
  finished, reason, out, err, out_size, err_size, origin
  dropped                           '1': out and err were dropped to make room, of which the sizes are left
--]]

local LIVE_ATTEMPTS = 72      -- records kept per task: 1 + 64 retries, some lost and released ones
local FINISHED_CAP = 10000    -- entries of each finished:<state>
local HELD_TTL = 86400000     -- ms; far past any lease, short enough to vanish by itself
local HEARTBEAT_TTL = 60000   -- ms; a worker or broker silent for longer is no longer listed
local ALIVE = 20000           -- ms; heard from since then: a worker heartbeats every 5 s, a broker every second
local PEERS_CAP = 2000        -- workers listed, and brokers: those heard from last
local OUTAGE = 3000           -- ms without a tick after which the leases are forgiven (brokers tick every second)
local MAX_GRACED = 3          -- outages forgiven to one attempt
local BUDGET = 200            -- items of one kind in one tick, claim or page
local RECOUNT_QUEUES = 1000   -- so many can be counted anew in one tick: 1 ms
local OWNED_LOOK = 50         -- of a client's tasks looked at when it has as many as it may have
local PAGE = 100              -- queues in one look at them; a small hash is looked at whole (512 at most)
local CLAIM_BYTES = 1048576   -- of specs in one claim's reply, after which it ends
local IDLE_QUEUE = 86400000   -- ms after which the name of an empty queue is forgotten
local BAND = 281474976710656  -- 2^48: room for the sequence below each priority
local STEP = 1 / 1024         -- fractions of a ms in `schedule`: exact in a double until the year 2248

local TRANSITIONS = {
  scheduled = {ready = true, cancelled = true, expired = true},
  ready = {running = true, cancelled = true, expired = true},
  running = {succeeded = true, failed = true, scheduled = true, ready = true, cancelled = true},
  succeeded = {}, failed = {}, cancelled = {}, expired = {},
}
local TERMINAL = {succeeded = true, failed = true, cancelled = true, expired = true}

local function call(...) return redis.call(...) end  -- redis.call exists only while a function runs
local function floor(n) return n - n % 1 end

local function int(n) return string.format('%.0f', n) end

-- Begins every function. A caller that names a cluster gets FOREIGN, and nothing else, where `meta` has another or none:
-- the server was emptied, or is another one. Returns one call's view: prefix, time, what of `meta` and of the queues'
-- counts is changed in memory and written once at its end (settle), and which tails to trim; and what is told of it: how
-- many tasks each queue gained.
local function begin(keys, args)
  local time = call('TIME')
  local us = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local prefix = string.sub(keys[1], 1, -5)
  local now = floor(us / 1000)
  local unpacked = args[1] and cmsgpack.unpack(args[1]) or {}
  local meta = call('HMGET', keys[1], 'cluster', 'sequence', 'live', 'kept', 'max_kept')
  if unpacked.cluster and meta[1] ~= unpacked.cluster then
    error({err = 'FOREIGN this is not the database that the caller has worked with'})
  end
  local sequence = tonumber(meta[2] or 0)
  if not sequence then error({err = 'ERR the sequence in meta is damaged'}) end
  return {
    p = prefix, us = us, now = now, now_text = int(now), counts = {}, closed = {}, gained = {}, owners = {},
    sequence = sequence, live = tonumber(meta[3]) or 0, kept = tonumber(meta[4]) or 0, max_kept = tonumber(meta[5]), was = {sequence = meta[2], live = meta[3], kept = meta[4]},
    looks = BUDGET, args = unpacked,
  }
end

-- The numbers of a queue: read once, changed in memory, written by settle. They are no more than that: where they are
-- damaged from outside, everything else goes on.
local function counts_of(c, queue)
  local of = c.counts[queue]
  if not of then
    local all, values = redis.pcall('HGETALL', c.p .. 'counts:' .. queue), {}
    for i = 1, #all, 2 do values[all[i]] = all[i + 1] end
    of = {all = all, values = values, changed = {}}
    c.counts[queue] = of
  end
  return of
end

local function count(c, queue, field, n)
  local of = counts_of(c, queue)
  of.values[field] = (tonumber(of.values[field]) or 0) + n
  of.changed[field] = true
end

local function add(list, field, value)
  list[#list + 1] = field
  list[#list + 1] = value
end

local NO_TOTAL = {scheduled = true, running = true, touched = true, began = true, before = true}
local NONE = '\128'  -- an empty map; cmsgpack is there only while a function runs

-- The totals among the numbers of a queue, as a map.
local function totals_in(all)
  local totals = {}
  for i = 1, #all, 2 do
    if not NO_TOTAL[all[i]] then totals[all[i]] = tonumber(all[i + 1]) end
  end
  return cmsgpack.pack(totals)
end

-- A call of redis.call costs some 5 us, whatever it does: all of a hash are read by one and written by one.
local function settle(c)
  local minute = floor(c.now / 60000)
  for queue, of in pairs(c.counts) do
    if next(of.changed) then
      local key, sets = c.p .. 'counts:' .. queue, {'touched', c.now_text}
      local last = floor((tonumber(of.values.touched) or 0) / 60000)
      if last ~= minute then  -- the rates of the last minutes are told by what the totals were
        local totals = totals_in(of.all)
        add(sets, 'before', last == minute - 1 and (of.values.began or NONE) or totals)
        add(sets, 'began', totals)
      end
      for field in pairs(of.changed) do add(sets, field, int(of.values[field])) end
      redis.pcall('HSET', key, unpack(sets))
    end
  end
  for owner, of in pairs(c.owners) do
    if #of.adds > 0 then call('ZADD', c.p .. 'owned:' .. owner, unpack(of.adds)) end
  end
  local sets = {}
  c.kept = math.max(c.kept, 0)  -- below it an index was deleted from outside
  for field, was in pairs(c.was) do
    if int(c[field]) ~= was then add(sets, field, int(c[field])) end
  end
  if #sets > 0 then call('HSET', c.p .. 'meta', unpack(sets)) end
  for state in pairs(c.closed) do call('ZREMRANGEBYRANK', c.p .. 'finished:' .. state, 0, -FINISHED_CAP - 1) end
end

local function flat(map)
  local list = {}
  for key, value in pairs(map) do list[#list + 1] = key; list[#list + 1] = value end
  return list
end

local function publish(c, what, text) call('PUBLISH', c.p .. c.args.db .. ':' .. what, text) end

local function read_plan(packed)
  local a = cmsgpack.unpack(packed)
  return {
    name = a[1], start = a[2] or 0, retry = a[3] or {}, queue = (a[4] or '') == '' and 'default' or a[4],
    priority = a[5] or 5, delay = a[6] or 0, keep = a[7] or 0, expires = a[8] or 0, fail_if_lost = a[9] == 1,
  }
end

-- Whether a plan that ends with its nth item may as well end before it.
local function is_default(a, n)
  return n > 1 and a[n] == ({0, 0, 0, '', 5, 0, 0, 0, 0})[n] or n == 3 and #a[3] == 0
end

-- When a task that has been ready could first have been started.
local function due_of(plan, due, created)
  if due then return tonumber(due) end
  return plan.start > 0 and plan.start or tonumber(created)
end

-- Calls f(id, i) for each id of an index. What has no readable record is taken off the index, and named in the server's
-- log: it would stop every later call as well.
local function each(key, ids, f)
  for i, id in ipairs(ids) do
    local ok, problem = pcall(f, id, i)
    if not ok then
      redis.log(redis.LOG_WARNING, key .. ' drops ' .. id .. ': ' .. tostring(problem.err or problem))
      call('ZREM', key, id)
    end
  end
end

-- ── moves: each leaves every key of the task consistent ─────────────────────────────────────────────────────────────

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

-- ── outputs: kept until their record vanishes, or until there are too many ─────────────────────────────────────────

-- Takes {{id, bytes, keep}, …}. The instant is in the member because an id may come again before its old entry went.
local function keep_outputs(c, outputs)
  if #outputs == 0 then return end
  local ended, untils = {}, {}
  for i, o in ipairs(outputs) do
    local member = o[1] .. c.now_text .. ':' .. int(o[2])
    ended[2 * i - 1], ended[2 * i] = c.now_text, member
    untils[2 * i - 1], untils[2 * i] = int(c.now + o[3]), member
    c.kept = c.kept + o[2]
  end
  call('ZADD', c.p .. 'outputs:ended', unpack(ended))
  call('ZADD', c.p .. 'outputs:until', unpack(untils))
end

local function forget_output(c, member)
  call('ZREM', c.p .. 'outputs:ended', member)
  c.kept = c.kept - call('ZREM', c.p .. 'outputs:until', member) * (tonumber(string.match(member, ':(%d+)$')) or 0)
end

-- A record vanishes by its own TTL: what it held counts no more.
local function forget_vanished(c)
  local members = call('ZRANGEBYSCORE', c.p .. 'outputs:until', '-inf', c.now_text, 'LIMIT', 0, BUDGET)
  for _, member in ipairs(members) do forget_output(c, member) end
  return #members
end

-- Drops the oldest outputs until no more than `most` bytes are left.
local function drop_outputs(c, most)
  if c.kept <= most then return 0 end
  local found = call('ZRANGE', c.p .. 'outputs:ended', 0, BUDGET - 1, 'WITHSCORES')
  local n = 0
  while n < #found / 2 and c.kept > most do
    local member, ended = found[2 * n + 1], found[2 * n + 2]
    local key = c.p .. 'task:' .. string.sub(member, 1, 36)
    if redis.pcall('HGET', key, 'finished') == ended then  -- else the record is gone, or another has its id
      call('HDEL', key, 'out', 'err')
      call('HSET', key, 'dropped', '1')
    end
    forget_output(c, member)
    n = n + 1
  end
  if n == #found / 2 and n < BUDGET then c.kept = 0 end  -- none is left: an index was deleted from outside
  return n
end

-- ── submit, requeue ─────────────────────────────────────────────────────────────────────────────────────────────────

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

-- ── tick ────────────────────────────────────────────────────────────────────────────────────────────────────────────

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

-- ── workers: claim, extend, finish, release ─────────────────────────────────────────────────────────────────────────

-- The task and its plan if the caller holds this very attempt, else nil.
local function fenced_read(c, id, number, token, ...)
  local t = redis.pcall('HMGET', c.p .. 'task:' .. id, 't', 'attempt', 'token', 'p', 'cancel', 'place', ...)
  if not t[1] or tonumber(t[2] or 0) ~= number or t[3] ~= token then return nil end
  local ok, plan = pcall(read_plan, t[4])
  if ok then return t, plan end
end

local function held_by(c, worker)
  local attempts, all = {}, call('HGETALL', c.p .. 'held:' .. worker)
  for i = 1, #all, 2 do
    local number, nth, token = string.match(all[i + 1], '^(%d+):(%d+):(.*)$')
    attempts[#attempts + 1] = {id = all[i], number = tonumber(number), nth = tonumber(nth), token = token}
  end
  return attempts
end

-- nil if the record lacks something: a reply ends at the first hole.
local function grant(id, number, spec, plan, due, claimed)
  if not (spec and due and claimed) then return nil end
  return {id, number, plan.name, spec, plan.queue, due, plan.fail_if_lost and 1 or 0, tonumber(claimed)}
end

-- Claims for c.args.worker with c.args.lease what `a` = {queues, n, token, nth} asks for. Returns {{id, number, name, spec,
-- queue, due, fail_if_lost, claimed}, …}, and 1 if BUDGET or CLAIM_BYTES ended it: there may be further tasks.
local function take(c, a)
  local worker, tasks = c.args.worker, {}
  local held = c.p .. 'held:' .. worker
  local left, looks, bytes = a.n, BUDGET, 0
  for _, queue in ipairs(a.queues) do
    local paused = left > 0 and call('HGET', c.p .. 'queues', queue) == '1'
    local index = c.p .. 'ready:' .. queue
    while left > 0 and looks > 0 and not paused do
      local found = call('ZPOPMIN', index, math.min(left, looks))
      if #found == 0 then break end
      local ids, places = {}, {}
      for i = 1, #found, 2 do ids[#ids + 1] = found[i]; places[#places + 1] = found[i + 1] end
      each(index, ids, function(id, i)
        if looks <= 0 then  -- those before it were too big
          call('ZADD', index, places[i], id)
          return
        end
        looks = looks - 1
        local key = c.p .. 'task:' .. id
        local t = call('HMGET', key, 'p', 'attempt', 's', 'due', 'c')
        local plan = read_plan(t[1])
        local due = due_of(plan, t[4], t[5])
        assert(t[3] and due, 'fields are missing')
        if plan.expires > 0 and plan.expires <= c.now then
          close(c, id, 'ready', 'expired', plan, 'expires_at')
          return
        end
        if plan.expires > 0 then call('ZREM', c.p .. 'expiry', id) end
        local number = tonumber(t[2] or 0) + 1
        call('HSET', key, 't', 'running', 'attempt', int(number), 'token', a.token, 'worker', worker,
          'claimed', c.now_text, 'place', places[i])
        call('ZADD', c.p .. 'running', int(c.now + c.args.lease), id)
        call('HSET', held, id, int(number) .. ':' .. int(a.nth) .. ':' .. a.token)
        count(c, queue, 'running', 1)
        count(c, queue, 'started', 1)
        tasks[#tasks + 1] = grant(id, number, t[3], plan, due, c.now)
        left = left - 1
        bytes = bytes + #t[3]
        if bytes >= CLAIM_BYTES then looks = 0 end
      end)
    end
  end
  if #tasks > 0 then call('PEXPIRE', held, HELD_TTL) end
  return tasks, looks <= 0 and 1 or 0
end

-- args {db, worker, queues, n, token, nth, lease, keep, failed_keep, again}: the nth claim of this worker; again = 1
-- sends a claim whose reply was lost once more, gets what it got, and renews it. Returns {now_us, tasks, more} as `take`.
local function claim(keys, args)
  local c = begin(keys, args)
  local a = c.args
  if a.again == 1 then
    local tasks = {}
    for _, h in ipairs(held_by(c, a.worker)) do
      if h.token == a.token then
        local t, plan = fenced_read(c, h.id, h.number, h.token, 's', 'due', 'c', 'claimed')
        if t then
          tasks[#tasks + 1] = grant(h.id, h.number, t[7], plan, due_of(plan, t[8], t[9]), t[10])
          call('ZADD', c.p .. 'running', int(c.now + a.lease), h.id)
        end
      end
    end
    if #tasks > 0 then return {c.us, tasks, 1} end
  end
  local taken, tasks, more = pcall(take, c, a)
  settle(c)
  if not taken then error(tasks) end
  return {c.us, tasks, more}
end

-- An attempt that did not end by itself, uncounted: back to its place, or cancelled if that was asked for.
local function hand_back(c, id, t, plan, worker, record)
  record_attempt(c.p .. 'task:' .. id, tonumber(t[2]), record)
  if t[5] then
    close(c, id, 'running', 'cancelled', plan, 'cancelled', worker)
    return 'cancelled'
  end
  back_to_ready(c, id, plan, worker, t[6])
  return 'ready'
end

-- args {db, worker, lease, heartbeat, held = {{id, number, token}, …}, claims = {token, …}, upto, keep, failed_keep}
-- Renews what is held; whatever else is recorded for the worker, except under the tokens of claims still under way, is
-- handed back uncounted: it never learnt of it. What it claimed after its claim number `upto` was claimed after this
-- call was sent, which may come late: that is left alone. Returns {now_us, {'ok' | 'cancel' | 'fenced', …}}
local function extend(keys, args)
  local c = begin(keys, args)
  local a = c.args
  local known, coming, statuses = {}, {}, {}
  for i, h in ipairs(a.held) do
    local id, number, token = h[1], h[2], h[3]
    local t = fenced_read(c, id, number, token)
    if t and t[1] == 'running' then
      known[id] = true
      call('ZADD', c.p .. 'running', int(c.now + a.lease), id)
      statuses[i] = t[5] and 'cancel' or 'ok'
    else
      statuses[i] = 'fenced'
    end
  end
  for _, token in ipairs(a.claims) do coming[token] = true end
  for _, h in ipairs(held_by(c, a.worker)) do
    if h.nth <= a.upto and not known[h.id] and not coming[h.token] then
      local t, plan = fenced_read(c, h.id, h.number, h.token, 'claimed')
      if t and t[1] == 'running' then
        hand_back(c, h.id, t, plan, a.worker, brief(h.number, a.worker, tonumber(t[7]), c.now, 'released'))
      else
        call('HDEL', c.p .. 'held:' .. a.worker, h.id)
      end
    end
  end
  call('PEXPIRE', c.p .. 'held:' .. a.worker, HELD_TTL)
  if #a.heartbeat > 0 then hear(c, 'workers', a.worker, a.heartbeat) end
  settle(c)
  wake(c)
  return {c.us, statuses}
end

-- args {db, worker, keep, failed_keep, ended = {{id, number, token, verdict, reason, record, out, err, out_size,
-- err_size}, …}, lease, claim}; verdict: succeeded | failed | final (failed, no retry); claim: absent, or {queues, n,
-- token, nth}, what is to be claimed by the same call.
-- Returns {now_us, {state now | 'recorded' (it was before) | 'fenced', …}}, and with a claim tasks and more as `take`
local function finish(keys, args)
  local c = begin(keys, args)
  local answers, outputs = {}, {}
  for i, e in ipairs(c.args.ended) do
    local id, number, verdict, reason = e[1], e[2], e[4], e[5]
    local key = c.p .. 'task:' .. id
    local t, plan = fenced_read(c, id, number, e[3], 'watched', 'o', 'graced', 'failures')
    if not t then
      answers[i] = 'fenced'
    elseif t[1] ~= 'running' then
      answers[i] = 'recorded'
    else
      local worker, to, interval = c.args.worker, 'succeeded', nil
      local fields = {attempt_field(key, number), e[6]}
      if verdict ~= 'succeeded' then
        local failures = tonumber(t[10] or 0) + 1
        add(fields, 'failures', int(failures))
        interval = verdict ~= 'final' and not t[5] and plan.retry[failures]
        to = interval and 'scheduled' or t[5] and 'cancelled' or 'failed'
      end
      if interval then
        again_after(c, id, plan, worker, interval, reason, fields)
      else
        local size = #e[7] + #e[8]
        add(fields, 'out_size', int(e[9]))
        add(fields, 'err_size', int(e[10]))
        if #e[7] > 0 then add(fields, 'out', e[7]) end
        if #e[8] > 0 then add(fields, 'err', e[8]) end
        if to == 'succeeded' then reason = '' end
        local keep = close(c, id, 'running', to, plan, reason, worker, fields, {t[7], t[8], t[5], t[9]})
        if size > 0 then outputs[#outputs + 1] = {id, size, keep} end
      end
      answers[i] = to
    end
  end
  keep_outputs(c, outputs)
  if c.max_kept then drop_outputs(c, c.max_kept) end  -- else there was no tick yet
  local taken, tasks, more = true, nil, nil
  if c.args.claim then taken, tasks, more = pcall(take, c, c.args.claim) end
  settle(c)
  announce(c)
  if not taken then error(tasks) end
  return {c.us, answers, tasks, more}
end

local function finish_cut(keys, args)
  for _, e in ipairs(cmsgpack.unpack(args[1]).ended) do
    if #e[7] + #e[8] > 4096 then return redis.error_reply('KINGTASK finish_cut takes outputs of at most 4096 bytes') end
  end
  return finish(keys, args)
end

-- args {db, worker, keep, failed_keep, attempts = {{id, number, token, record}, …}}: handed back, uncounted.
-- Returns {now_us, {'ready' | 'cancelled' | 'fenced', …}}
local function release(keys, args)
  local c = begin(keys, args)
  local answers = {}
  for i, r in ipairs(c.args.attempts) do
    local t, plan = fenced_read(c, r[1], r[2], r[3])
    local running = t and t[1] == 'running'
    answers[i] = running and hand_back(c, r[1], t, plan, c.args.worker, r[4]) or 'fenced'
  end
  settle(c)
  wake(c)
  return {c.us, answers}
end

-- ── cancel, pause, wait ─────────────────────────────────────────────────────────────────────────────────────────────

-- args {db, id, keep, failed_keep}. Returns the state it found, or 'missing'; scheduled and ready are cancelled at
-- once, a running one is flagged and its worker told.
local function cancel(keys, args)
  local c = begin(keys, args)
  local id = c.args.id
  local key = c.p .. 'task:' .. id
  local t = call('HMGET', key, 't', 'p', 'worker')
  if not t[1] then return 'missing' end
  if t[1] == 'scheduled' or t[1] == 'ready' then
    close(c, id, t[1], 'cancelled', read_plan(t[2]), 'cancelled')
    settle(c)
  elseif t[1] == 'running' then
    call('HSET', key, 'cancel', '1')
    publish(c, 'cancel', t[3] .. ' ' .. id)
  end
  return t[1]
end

-- args {db, queue, paused, max_queues}. Returns 'ok' or 'queues'.
local function pause(keys, args)
  local c = begin(keys, args)
  local a = c.args
  if not admit(c, a.queue) then return 'queues' end
  call('HSET', c.p .. 'queues', a.queue, a.paused == 1 and '1' or '0')
  if a.paused == 0 then
    local n = call('ZCARD', c.p .. 'ready:' .. a.queue)
    if n > 0 then publish(c, 'ready', a.queue .. ' ' .. int(n)) end
  end
  return 'ok'
end

-- args {db, id}: marks a living task as waited for. Returns its state, or 'missing'.
local function wait(keys, args)
  local c = begin(keys, args)
  local key = c.p .. 'task:' .. c.args.id
  local state = call('HGET', key, 't')
  if not state then return 'missing' end
  if not TERMINAL[state] then call('HSET', key, 'watched', '1') end
  return state
end

-- ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

-- args {}. Returns {now_us}, with nothing that could hold the reply up.
local function clock(keys, args)
  return {begin(keys, args).us}
end

-- args {id}. Returns {now_us, due of a scheduled task or 0, {field, value, …}}; the last is empty if there is none.
local function get(keys, args)
  local c = begin(keys, args)
  local all = call('HGETALL', c.p .. 'task:' .. c.args.id)
  local due = call('ZSCORE', c.p .. 'schedule', c.args.id)
  return {c.us, due and floor(tonumber(due)) or 0, all}
end

-- args {ids}. Returns the state of each, or ''.
local function states(keys, args)
  local c = begin(keys, args)
  local found = {}
  for i, id in ipairs(c.args.ids) do
    local state = redis.pcall('HGET', c.p .. 'task:' .. id, 't')
    found[i] = type(state) == 'string' and state or ''
  end
  return found
end

-- args {state, queue ('' = all), from, to, rest, limit}: from and to are scores as text, in reading order: terminal
-- states newest first, living ones earliest first. Looks at no more than BUDGET entries, so a page may be short.
-- Returns {score of the last entry looked at, rest, done, {{id, score, plan, created, due, attempt, worker, reason,
-- origin, state}, …}}. The next page begins at that score with that rest: 1 + its entries not looked at (0: at
-- the start). What is left is counted, not what was seen: entries seen may leave meanwhile and must not hide others.
local function list(keys, args)
  local c = begin(keys, args)
  local a = c.args
  local key, order = c.p .. a.state, 'ZRANGEBYSCORE'
  if a.state == 'scheduled' then key = c.p .. 'schedule' end
  if a.state == 'ready' then key = c.p .. 'ready:' .. a.queue end
  if TERMINAL[a.state] then key = c.p .. 'finished:' .. a.state; order = 'ZREVRANGEBYSCORE' end
  local skip = a.rest > 0 and math.max(0, call('ZCOUNT', key, a.from, a.from) - a.rest + 1) or 0
  local found = call(order, key, a.from, a.to, 'WITHSCORES', 'LIMIT', skip, BUDGET)
  local rows, score, same, looked = {}, a.from, skip, 0
  for i = 1, #found, 2 do
    if #rows == a.limit then break end
    local id = found[i]
    if found[i + 1] == score then same = same + 1 else score = found[i + 1]; same = 1 end
    looked = looked + 1
    local t = redis.pcall('HMGET', c.p .. 'task:' .. id, 'p', 'c', 'due', 'attempt', 'worker', 'reason',
      'origin', 't')
    local ok, plan = pcall(read_plan, t[1])
    if ok and plan.name and t[8] == a.state and (a.queue == '' or plan.queue == a.queue) then
      local row = {id, found[i + 1]}
      for k = 1, 8 do row[k + 2] = t[k] or '' end
      rows[#rows + 1] = row
    end
  end
  local rest = looked > 0 and 1 + call('ZCOUNT', key, score, score) - same or 0
  return {score, rest, looked * 2 == #found and #found < 2 * BUDGET and 1 or 0, rows}
end

-- Since when the longest waiting task of a queue could have been claimed: the first of each priority tells.
local function oldest_since(c, queue)
  local oldest, from = nil, 0
  while true do
    local first = call('ZRANGEBYSCORE', c.p .. 'ready:' .. queue, int(from), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then return oldest end
    local t = redis.pcall('HMGET', c.p .. 'task:' .. first[1], 'due', 'c')
    local since = tonumber(t[1] or t[2] or nil)  -- a start in the past: since its submit
    if since and (not oldest or since < oldest) then oldest = since end
    from = (floor(tonumber(first[2]) / BAND) + 1) * BAND
  end
end

-- {queue, paused, ready, oldest since ms or 0, {counts:<queue>…}}
local function row_of(c, queue, paused)
  return {
    queue, paused == '1' and 1 or 0, call('ZCARD', c.p .. 'ready:' .. queue), oldest_since(c, queue) or 0,
    call('HGETALL', c.p .. 'counts:' .. queue),
  }
end

-- args {}. Returns {now_us, {row_of, …}, {worker, heartbeat, …},
-- {broker, heartbeat, …}}
local function stats(keys, args)
  local c = begin(keys, args)
  local rows = {}
  local queues = call('HGETALL', c.p .. 'queues')
  for i = 1, #queues, 2 do
    rows[#rows + 1] = row_of(c, queues[i], queues[i + 1])
  end
  return {c.us, rows, call('HGETALL', c.p .. 'workers'), call('HGETALL', c.p .. 'brokers')}
end

-- args {cursor ('0' at first)}. Some hundred queues at a time, for those who look often: their rates they make themselves.
-- Returns {now_us, next cursor ('0': that was all), {row_of, …}, names of queues, living tasks, bytes of outputs,
-- workers and brokers heard from lately}
local function queues(keys, args)
  local c = begin(keys, args)
  local found = call('HSCAN', c.p .. 'queues', c.args.cursor, 'COUNT', PAGE)
  local rows = {}
  for i = 1, #found[2], 2 do rows[#rows + 1] = row_of(c, found[2][i], found[2][i + 1]) end
  return {
    c.us, found[1], rows, call('HLEN', c.p .. 'queues'), c.live, c.kept,
    call('ZCOUNT', c.p .. 'workers:seen', int(c.now - ALIVE), '+inf'),
    call('ZCOUNT', c.p .. 'brokers:seen', int(c.now - ALIVE), '+inf'),
  }
end

-- args {schema, new_cluster}: writes both if the namespace is new. Returns {now_us, schema, cluster}.
local function open(keys, args)
  local c = begin(keys, args)
  call('HSETNX', keys[1], 'schema', c.args.schema)
  call('HSETNX', keys[1], 'cluster', c.args.new_cluster)
  local t = call('HMGET', keys[1], 'schema', 'cluster')
  return {c.us, tonumber(t[1]), t[2]}
end

-- args {}: writes, so that WAIT behind it covers all that was written before, whatever connection that came by.
local function mark(keys, args)
  local c = begin(keys, args)
  local place = next_places(c, 1)
  settle(c)
  return place
end

local function register(name, callback, ...)
  redis.register_function{function_name = 'kingtask_' .. name .. '_@HASH@', callback = callback, flags = {...}}
end

register('submit', submit)
register('requeue', requeue)
register('tick', tick, 'allow-oom')
register('claim', claim, 'allow-oom')
register('extend', extend, 'allow-oom')
register('finish', finish)
register('finish_cut', finish_cut, 'allow-oom')
register('release', release, 'allow-oom')
register('cancel', cancel, 'allow-oom')
register('pause', pause, 'allow-oom')  -- to resume a queue drains; names are bounded
register('wait', wait, 'allow-oom')
register('open', open, 'allow-oom')  -- else no worker could connect to a full store to drain it
register('mark', mark, 'allow-oom')  -- what a full store still does has to be confirmed as well
register('clock', clock, 'no-writes')
register('get', get, 'no-writes')
register('states', states, 'no-writes')
register('list', list, 'no-writes')
register('stats', stats, 'no-writes')
register('queues', queues, 'no-writes')
