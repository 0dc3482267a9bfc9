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
