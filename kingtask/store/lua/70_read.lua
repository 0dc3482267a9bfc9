-- args {}. Returns {now_us}, with nothing that could hold the reply up.
local function clock(keys, args)
  return {begin(keys, args).us}
end
register('clock', clock, 'no-writes')

-- args {id}. Returns {now_us, due of a scheduled task or 0, {field, value, …}}; the last is empty if there is none.
local function get(keys, args)
  local c = begin(keys, args)
  local all = call('HGETALL', c.p .. 'task:' .. c.args.id)
  local due = call('ZSCORE', c.p .. 'schedule', c.args.id)
  return {c.us, due and floor(tonumber(due)) or 0, all}
end
register('get', get, 'no-writes')

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
register('states', states, 'no-writes')

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
register('list', list, 'no-writes')

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
register('stats', stats, 'no-writes')

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
register('queues', queues, 'no-writes')
