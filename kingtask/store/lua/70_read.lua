do  -- Reading. All of these have 'no-writes': they also run on a full or a read-only server.

-- args {}. Returns {now_us}; nothing here can delay the reply.
local function clock(keys, args)
  return {fcall.begin(keys, args).us}
end
register('clock', clock, 'no-writes')

-- args {id, of}. Returns {now_us, due of a scheduled task or 0, {field, value, …}}; the fields are empty if there is no
-- record, or with due -1 if the task is foreign (tasks.hidden).
local function get(keys, args)
  local c = fcall.begin(keys, args)
  local hidden = tasks.hidden(c)
  if hidden then return {c.us, hidden == 'foreign' and -1 or 0, {}} end
  local fields = call('HGETALL', key.task(c.args.id))
  local due = call('ZSCORE', key.schedule, c.args.id)
  return {c.us, due and floor(tonumber(due)) or 0, fields}
end
register('get', get, 'no-writes')

-- args {ids}. Returns the state of each, or ''.
local function states(keys, args)
  local c = fcall.begin(keys, args)
  local found = {}
  for i, id in ipairs(c.args.ids) do
    local state = redis.pcall('HGET', key.task(id), STATE)
    found[i] = type(state) == 'string' and state or ''
  end
  return found
end
register('states', states, 'no-writes')

local function index_of(state, queue)
  if state == 'scheduled' then return key.schedule end
  if state == 'ready' then return key.ready(queue) end
  if state == 'running' then return key.running end
  return key.finished(state)
end

local LISTED = {PLAN, STATE, CREATED, OWNER, 'due', 'attempt', 'worker', 'reason', 'origin', 'finished'}

-- {id, due of a scheduled task or 0, {field, value, …} of LISTED}; nil if the task is not of this state, queue and
-- owner, or its record is damaged.
local function list_row(a, id, score)
  local ok, task = pcall(moves.read, id, LISTED)
  if not ok or task[STATE] ~= a.state or a.queue ~= '' and a.queue ~= task.plan.queue then return nil end
  if a.of and task[OWNER] ~= a.of then return nil end
  local fields = {}
  for _, field in ipairs(LISTED) do
    if task[field] then add(fields, field, task[field]) end
  end
  return {id, a.state == 'scheduled' and floor(tonumber(score)) or 0, fields}
end

-- args {state, queue ('' = all), of (the only owner, absent: all), from, to, rest, limit}: from and to are scores as
-- text, in reading order. Examines at most BUDGET entries, so a page may be short.
-- Returns {score of the last examined entry, rest, done, {list_row, …}}. The next page begins at that score with that
-- rest: 1 + the entries of that score that were not examined (0: at the start). These are counted, and not the examined
-- ones, since examined entries may leave meanwhile and must not hide others.
local function list(keys, args)
  local c = fcall.begin(keys, args)
  local a = c.args
  local index = index_of(a.state, a.queue)
  local skip = a.rest > 0 and math.max(0, call('ZCOUNT', index, a.from, a.from) - a.rest + 1) or 0
  local ids, scores = split(TERMINAL[a.state]  -- terminal states newest first, living ones earliest first
    and call('ZREVRANGEBYSCORE', index, a.from, a.to, 'WITHSCORES', 'LIMIT', skip, BUDGET)
    or call('ZRANGEBYSCORE', index, a.from, a.to, 'WITHSCORES', 'LIMIT', skip, BUDGET))
  local rows, score, same, examined = {}, a.from, skip, 0
  while examined < #ids and #rows < a.limit do
    examined = examined + 1
    same = scores[examined] == score and same + 1 or 1
    score = scores[examined]
    rows[#rows + 1] = list_row(a, ids[examined], score)
  end
  local rest = examined > 0 and 1 + call('ZCOUNT', index, score, score) - same or 0
  local done = examined == #ids and examined < BUDGET
  return {score, rest, done and 1 or 0, rows}
end
register('list', list, 'no-writes')

-- The instant since which the longest waiting task of a queue could have been claimed, or nil: the first task of each
-- priority shows it. A damaged place may be above those of all priorities.
local function oldest_since(queue)
  local oldest, from = nil, 0
  for _ = 0, 9 do
    local id, place = unpack(
      call('ZRANGEBYSCORE', key.ready(queue), int(from), '+inf', 'WITHSCORES', 'LIMIT', 0, 1))
    if not id then break end
    local due, created = unpack(redis.pcall('HMGET', key.task(id), 'due', CREATED))
    local since = tonumber(due or created or nil)  -- with a start in the past: since its submit
    if since and (not oldest or since < oldest) then oldest = since end
    from = (floor(tonumber(place) / BAND) + 1) * BAND
  end
  return oldest
end

local function numbers_of(queue)
  return {call('ZCARD', key.ready(queue)), oldest_since(queue) or 0, call('HGETALL', key.counts(queue))}
end

-- args {queues}: a part of what `gather_stats` of functions.py reads. Returns {now_us, {{tasks that are ready, oldest
-- since ms or 0, {counts:<queue>…}}, …}} of these queues, zeros of one with a damaged index. Without `queues`: {now_us,
-- {queue, paused, …} of all, living tasks, bytes of outputs, {worker, heartbeat, …}, {broker, heartbeat, …}}
local function stats(keys, args)
  local c = fcall.begin(keys, args)
  local queues, rows = c.args.queues, {}
  if not queues then
    return {
      c.us, call('HGETALL', key.queues), c.live, c.kept,
      call('HGETALL', key.peers('workers')), call('HGETALL', key.peers('brokers')),
    }
  end
  for i, queue in ipairs(queues) do
    local ok, row = pcall(numbers_of, queue)
    if not ok and fcall.failed(c, 'stats', queue, row) then error(row) end
    rows[i] = ok and row or {0, 0, {}}
  end
  return {c.us, rows}
end
register('stats', stats, 'no-writes')

end
