do  -- Control: cancel, pause, wait, and the calls of a connection.

-- args {db, id, of, keep, failed_keep}: cancels a scheduled or ready task at once, flags a running one and notifies its
-- worker. Returns the state that it found, 'missing' or 'foreign' (tasks.hidden).
local function cancel(keys, args)
  local c = fcall.begin(keys, args)
  local id, path, hidden = c.args.id, key.task(c.args.id), tasks.hidden(c)
  if hidden then return hidden end
  local state, worker = unpack(call('HMGET', path, STATE, 'worker'))
  if not state then return 'missing' end
  if state == 'scheduled' or state == 'ready' then
    moves.close(c, moves.read(id, {PLAN}, state), 'cancelled', 'cancelled')
    fcall.settle(c)
  elseif state == 'running' then
    call('HSET', path, 'cancel', '1')
    fcall.publish(c, 'cancel', worker .. ' ' .. id)
  end
  return state
end
register('cancel', cancel, 'allow-oom')  -- it drains

-- args {id, of}: removes the record of an ended task. Returns 'forgotten', the state of a living one, 'missing' or
-- 'foreign' (tasks.hidden).
local function forget(keys, args)
  local c = fcall.begin(keys, args)
  local id, path, hidden = c.args.id, key.task(c.args.id), tasks.hidden(c)
  if hidden then return hidden end
  local state, ended, out, err, given, limits =
    unpack(call('HMGET', path, STATE, 'finished', 'out', 'err', GIVEN, LIMITS))
  if not TERMINAL[state] then return state or 'missing' end
  outputs.forget_one(c, id, ended, #(out or '') + #(err or ''), given, limits)
  call('DEL', path)
  redis.pcall('ZREM', key.finished(state), id)
  fcall.settle(c)
  return 'forgotten'
end
register('forget', forget, 'allow-oom')  -- it drains

-- args {db, queue, paused, max_queues, quota}; quota: as in admit. Returns 'ok', or the reason of know_queue.
local function pause(keys, args)
  local c = fcall.begin(keys, args)
  local queue, paused = c.args.queue, c.args.paused == 1
  local refusal = tasks.know_queue(c, queue, c.args.quota)
  if refusal then return refusal end
  call('HSET', key.queues, queue, paused and '1' or '0')
  local n = paused and 0 or call('ZCARD', key.ready(queue))
  if n > 0 then fcall.publish(c, 'ready', queue .. ' ' .. int(n)) end
  return 'ok'
end
register('pause', pause, 'allow-oom')  -- to resume a queue drains; the number of names is bounded

-- args {db, id, of}: marks a living task as waited for. Returns its state, 'missing' or 'foreign' (tasks.hidden).
local function wait(keys, args)
  local c = fcall.begin(keys, args)
  local path, hidden = key.task(c.args.id), tasks.hidden(c)
  if hidden then return hidden end
  local state = call('HGET', path, STATE)
  if not state then return 'missing' end
  if not TERMINAL[state] then call('HSET', path, 'watched', '1') end
  return state
end
register('wait', wait, 'allow-oom')  -- one short field

-- args {schema, new_cluster}: writes both if the namespace is new. Returns {now_us, schema, cluster}.
local function open(keys, args)
  local c = fcall.begin(keys, args)
  call('HSETNX', key.meta, 'schema', c.args.schema)
  call('HSETNX', key.meta, 'cluster', c.args.new_cluster)
  local schema, cluster = unpack(call('HMGET', key.meta, 'schema', 'cluster'))
  return {c.us, tonumber(schema), cluster}
end
register('open', open, 'allow-oom')  -- otherwise no worker could connect to a full store to drain it

-- args {}: a write, so that a WAIT after it covers everything that was written before, over whatever connection.
local function mark(keys, args)
  local c = fcall.begin(keys, args)
  c.sequence = c.sequence + 1
  fcall.settle(c)
  return c.sequence
end
register('mark', mark, 'allow-oom')  -- what a full store still does has to be confirmed as well

end
