do  -- A call: it reads shared values at its beginning (`begin`), writes changed ones at its end (`settle`). And plans.

-- Begins every function. A caller that names a cluster gets FOREIGN, and nothing else, if `meta` has another cluster or
-- none: the server was emptied, or it is another server. Returns c, the values of this call.
function fcall.begin(keys, args)
  call = redis.call
  local seconds, micros = unpack(call('TIME'))
  local us = tonumber(seconds) * 1000000 + tonumber(micros)
  local now = floor(us / 1000)
  local unpacked = args[1] and cmsgpack.unpack(args[1]) or {}
  key.use(keys[1])
  local cluster, sequence, live, kept, max_kept =
    unpack(call('HMGET', key.meta, 'cluster', 'sequence', 'live', 'kept', 'max_kept'))
  if unpacked.cluster and cluster ~= unpacked.cluster then
    error({err = 'FOREIGN this is not the database that the caller has worked with'})
  end
  local stored = {sequence = tonumber(sequence), live = tonumber(live), kept = tonumber(kept)}
  if sequence and not stored.sequence then error({err = 'ERR the sequence in meta is damaged'}) end
  return {
    us = us, now = now, now_text = int(now), args = unpacked, max_kept = tonumber(max_kept),
    sequence = stored.sequence or 0, live = stored.live or 0, kept = stored.kept or 0,
    stored = stored,       -- as read; `settle` writes those of the three that have changed
    counts = {},           -- by queue: how much its numbers grow; `settle` writes them
    closed = {},           -- states in which tasks ended: `settle` trims their index finished:<state>
    ended = nil,           -- entries of outputs.collect: `settle` writes them
    kept_of = {},          -- by owner: bytes that its ended tasks keep, if they are bounded; `settle` writes them
    gained = {},           -- by queue: how many tasks became ready
    earliest = nil,        -- once a task is scheduled here: the earliest instant before, or false if there was none
    problem = nil,         -- an error that ends the call after its work: `settle` raises it
  }
end

-- Counts what happens to tasks of a queue; settle writes it. Of these numbers only `scheduled` is read, for the bound
-- of the queue: if they are damaged from outside, everything else goes on.
function counts.add(c, queue, field, n)
  local gained = c.counts[queue]
  if not gained then
    gained = {}
    c.counts[queue] = gained
  end
  gained[field] = (gained[field] or 0) + n
end

local NO_TOTAL = {scheduled = true, running = true, touched = true, began = true, before = true, owner = true}

-- In a new minute: adds to `sets` the totals at the beginning of the last two minutes, which give the rates.
local function begin_minute(queue, minutes, sets)
  local flat, before, totals = redis.pcall('HGETALL', key.counts(queue)), {}, {}
  for i = 1, #flat, 2 do
    before[flat[i]] = flat[i + 1]
    if not NO_TOTAL[flat[i]] then totals[flat[i]] = tonumber(flat[i + 1]) end
  end
  local packed = cmsgpack.pack(totals)
  add(sets, 'before', minutes == 1 and (before.began or cmsgpack.pack({})) or packed)
  add(sets, 'began', packed)
end

local function write_counts(c, queue, gained)
  local fields, sets = {'touched'}, {'touched', c.now_text}
  for field in pairs(gained) do fields[#fields + 1] = field end
  local values = redis.pcall('HMGET', key.counts(queue), unpack(fields))  -- the whole hash takes three times as long
  local minutes = floor(c.now / 60000) - floor((tonumber(values[1] or 0) or 0) / 60000)
  if minutes ~= 0 then begin_minute(queue, minutes, sets) end
  for i = 2, #fields do
    local field = fields[i]
    add(sets, field, int((tonumber(values[i] or 0) or 0) + gained[field]))
  end
  redis.pcall('HSET', key.counts(queue), unpack(sets))
end

local TOTALS = {'sequence', 'live', 'kept'}

-- Ends every function that changes tasks: writes what changed in memory.
function fcall.settle(c)
  for queue, gained in pairs(c.counts) do write_counts(c, queue, gained) end
  local ok, problem = pcall(outputs.settle, c)  -- if it fails, the ends are counted, and the caller repeats the call
  if not ok then c.problem = c.problem or problem end
  local sets = {}
  c.kept = math.max(c.kept, 0)  -- a negative number: an index was deleted from outside
  for _, field in ipairs(TOTALS) do
    if c[field] ~= c.stored[field] then add(sets, field, int(c[field])) end
  end
  if #sets > 0 then call('HSET', key.meta, unpack(sets)) end
  for state in pairs(c.closed) do redis.pcall('ZREMRANGEBYRANK', key.finished(state), 0, -FINISHED_CAP - 1) end
  if c.problem then error(c.problem) end
end

function fcall.publish(c, what, text) call('PUBLISH', key.channel(c.args.db, what), text) end

function plans.read(packed)
  local name, start, retry, queue, priority, delay, keep, expires, on_lost = unpack(cmsgpack.unpack(packed))
  local plan = {
    packed = packed, name = name, start = start or 0, retry = retry or {},
    queue = (queue or '') == '' and 'default' or queue, priority = priority or 5, delay = delay or 0,
    keep = keep or 0, expires = expires or 0, fail_if_lost = on_lost == 1,
  }
  -- A damaged plan must fail here, before the first write: a comparison raises an error unless both have one type.
  if name >= '' and plan.queue >= '' and #plan.retry >= 0 and plan.start >= 0 and plan.priority >= 0
    and plan.delay >= 0 and plan.keep >= 0 and plan.expires >= 0 then return plan end
  error('the plan is damaged')
end

local START, RETRY, DELAY, EXPIRES = 2, 3, 6, 8
local DEFAULTS = {0, 0, 0, '', 5, 0, 0, 0, 0}

-- The same plan for a new task that starts now: bound by no instant, as these have passed. Without defaults at its end,
-- as pack_plan of codec.py has it.
function plans.read_for_now(packed)
  local items = cmsgpack.unpack(packed)
  for _, instant in ipairs({START, DELAY, EXPIRES}) do items[instant] = items[instant] and 0 end
  while #items > 1 and (items[#items] == DEFAULTS[#items] or #items == RETRY and #items[RETRY] == 0) do
    items[#items] = nil
  end
  return plans.read(cmsgpack.pack(items))
end

-- The instant from which a task that has been ready could have been started.
function plans.due(plan, due, created)
  if due then return tonumber(due) end
  return plan.start > 0 and plan.start or tonumber(created)
end

-- Logs an error that costs `id` alone. A missing right in Redis is no damage: `settle` raises it. Returns c.problem.
function fcall.failed(c, what, id, problem)
  local text = tostring(problem.err or problem)
  redis.log(redis.LOG_WARNING, what .. ' failed for ' .. id .. ': ' .. text)
  if string.find(text, 'ACL failure') or string.find(text, "script can't") then c.problem = c.problem or problem end
  return c.problem
end

-- Calls f(id, i) for each id of an index. An id whose record cannot be read is removed from the index: it would stop
-- every later call as well.
function fcall.each(c, index, ids, f)
  for i, id in ipairs(ids) do
    local ok, problem = pcall(f, id, i)
    if not ok and not fcall.failed(c, index, id, problem) then call('ZREM', index, id) end
  end
end

-- Calls f(c, row, extra) for each row {id, …} and returns the answers, 'damaged' after an error. f finds damage of a
-- record before its first write, so an index is damaged: the worker repeats the row until the index is repaired.
function fcall.answer_each(c, what, rows, f, extra)
  local answers = {}
  for i, row in ipairs(rows) do
    local ok, answer = pcall(f, c, row, extra)
    answers[i] = ok and answer or 'damaged'
    if not ok then fcall.failed(c, what, (unpack(row)), answer) end
  end
  return answers
end

end
