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
register('claim', claim, 'allow-oom')

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
register('extend', extend, 'allow-oom')

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
register('finish', finish)

local function finish_cut(keys, args)
  for _, e in ipairs(cmsgpack.unpack(args[1]).ended) do
    if #e[7] + #e[8] > 4096 then return redis.error_reply('KINGTASK finish_cut takes outputs of at most 4096 bytes') end
  end
  return finish(keys, args)
end
register('finish_cut', finish_cut, 'allow-oom')

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
register('release', release, 'allow-oom')
