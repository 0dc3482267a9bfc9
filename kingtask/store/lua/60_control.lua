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
register('cancel', cancel, 'allow-oom')

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
register('pause', pause, 'allow-oom')  -- to resume a queue drains; names are bounded

-- args {db, id}: marks a living task as waited for. Returns its state, or 'missing'.
local function wait(keys, args)
  local c = begin(keys, args)
  local key = c.p .. 'task:' .. c.args.id
  local state = call('HGET', key, 't')
  if not state then return 'missing' end
  if not TERMINAL[state] then call('HSET', key, 'watched', '1') end
  return state
end
register('wait', wait, 'allow-oom')

-- args {schema, new_cluster}: writes both if the namespace is new. Returns {now_us, schema, cluster}.
local function open(keys, args)
  local c = begin(keys, args)
  call('HSETNX', keys[1], 'schema', c.args.schema)
  call('HSETNX', keys[1], 'cluster', c.args.new_cluster)
  local t = call('HMGET', keys[1], 'schema', 'cluster')
  return {c.us, tonumber(t[1]), t[2]}
end
register('open', open, 'allow-oom')  -- else no worker could connect to a full store to drain it

-- args {}: writes, so that WAIT behind it covers all that was written before, whatever connection that came by.
local function mark(keys, args)
  local c = begin(keys, args)
  local place = next_places(c, 1)
  settle(c)
  return place
end
register('mark', mark, 'allow-oom')  -- what a full store still does has to be confirmed as well
