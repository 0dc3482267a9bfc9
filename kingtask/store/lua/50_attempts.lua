do  -- Attempts: the functions claim, extend, finish, finish_cut, release, for workers. `take` picks the next tasks.

local TO_GRANT = {PLAN, STATE, 'attempt', 'token', SPEC, 'due', CREATED, 'claimed'}
local TO_GIVE_BACK = {PLAN, STATE, 'attempt', 'token', 'cancel', 'place', 'claimed'}
local TO_FINISH = {PLAN, STATE, 'attempt', 'token', 'watched', QUOTA, 'cancel', 'graced', 'failures', GIVEN, LIMITS}

-- The task of an attempt {id, number, token, …}, with these fields. Nil if the worker does not hold the attempt, or the
-- record is damaged.
local function read_held(c, row, fields)
  local id, number, token = unpack(row, 1, 3)
  local ok, task = pcall(moves.read, id, fields)
  if not ok or not task[STATE] or tonumber(task.attempt or 0) ~= number or task.token ~= token then return nil end
  task.worker = c.args.worker
  return task
end

-- What the worker was given: {{id, number, nth, token}, …}; a damaged entry has its id only.
local function attempts_of(worker)
  local attempts, all = {}, redis.pcall('HGETALL', key.held(worker))
  for i = 1, #all, 2 do
    local id, number, nth, token = all[i], string.match(all[i + 1], '^(%d+):(%d+):(.*)$')
    attempts[#attempts + 1] = {id = id, number = tonumber(number), nth = tonumber(nth), token = token}
  end
  return attempts
end

local function renew(c, id) call('ZADD', key.running, int(c.now + c.args.lease), id) end

-- A claimed task in the reply. All values must be there: a reply ends at the first hole.
local function grant(id, number, plan, spec, due, claimed)
  return {id, number, plan.name, spec, plan.queue, due, plan.fail_if_lost and 1 or 0, claimed}
end

-- Gives a task that was removed from ready to the worker, or expires it.
local function claim_one(c, taking, id, place)
  local path, request = key.task(id), taking.request
  local packed, attempt, spec, due, created = unpack(call('HMGET', path, PLAN, 'attempt', SPEC, 'due', CREATED))
  local plan = plans.read(packed)
  due = plans.due(plan, due, created)
  assert(spec and due, 'fields are missing')
  if plan.expires > 0 and moves.expire(c, {id = id, path = path, plan = plan, [STATE] = 'ready'}) then return end
  local number, worker = tonumber(attempt or 0) + 1, c.args.worker
  local ok, problem = pcall(renew, c, id)
  if not ok then  -- `running` is damaged: the task returns to its place, and the call fails
    taking.budget, c.problem = 0, problem
    return call('ZADD', key.ready(plan.queue), place, id)
  end
  if plan.expires > 0 then call('ZREM', key.expiry, id) end
  call('HSET', path, STATE, 'running', 'attempt', int(number), 'token', request.token, 'worker', worker,
    'claimed', c.now_text, 'place', place)
  redis.pcall('HSET', key.held(worker), id, int(number) .. ':' .. int(request.nth) .. ':' .. request.token)
  counts.add(c, plan.queue, 'running', 1)
  counts.add(c, plan.queue, 'started', 1)
  taking.tasks[#taking.tasks + 1] = grant(id, number, plan, spec, due, c.now)
  taking.left = taking.left - 1
  taking.bytes = taking.bytes + #spec
  if taking.bytes >= CLAIM_BYTES then taking.budget = 0 end
end

local function claim_from(c, taking, queue)
  local index = key.ready(queue)
  while taking.left > 0 and taking.budget > 0 do
    local ids, places = split(call('ZPOPMIN', index, math.min(taking.left, taking.budget)))
    if #ids == 0 then return end
    fcall.each(c, index, ids, function(id, i)
      if taking.budget <= 0 then return call('ZADD', index, places[i], id) end  -- the tasks before it were too big
      taking.budget = taking.budget - 1
      claim_one(c, taking, id, places[i])
    end)
  end
end

-- Claims what `request` = {queues, n, token, nth, hints} asks for; publishes `hints`, tokens of hints. Returns {{id,
-- number, name, spec, queue, due, fail_if_lost, claimed}, …}, and 1 if a bound ended it: there may be more tasks.
local function take(c, request)
  local taking = {request = request, left = request.n, budget = BUDGET, bytes = 0, tasks = {}}
  for _, queue in ipairs(request.queues) do
    if taking.left > 0 and taking.budget > 0 and call('HGET', key.queues, queue) ~= '1' then  -- '1': paused
      local ok, problem = pcall(claim_from, c, taking, queue)
      if not ok then fcall.failed(c, 'claim', queue, problem) end
    end
  end
  if #taking.tasks > 0 then call('PEXPIRE', key.held(c.args.worker), HELD_TTL) end
  if request.hints ~= '' then fcall.publish(c, 'claimed', request.hints) end
  return taking.tasks, taking.budget <= 0 and 1 or 0
end

-- What the claim with this token got; its leases are renewed.
local function taken_before(c, token)
  local granted = {}
  for _, attempt in ipairs(attempts_of(c.args.worker)) do
    if attempt.token == token then
      local id, number = attempt.id, attempt.number
      local task = read_held(c, {id, number, token}, TO_GRANT)
      if task then
        local spec, due, claimed = task[SPEC], plans.due(task.plan, task.due, task[CREATED]), tonumber(task.claimed)
        if spec and due and claimed then granted[#granted + 1] = grant(id, number, task.plan, spec, due, claimed) end
        renew(c, id)
      end
    end
  end
  return granted
end

-- args {db, worker, queues, n, token, nth, hints, lease, keep, failed_keep, again}: this worker's nth claim. again = 1:
-- it is repeated since its reply was lost; it gets the same tasks and renews them. Returns {now_us, tasks, more}.
local function claim(keys, args)
  local c = fcall.begin(keys, args)
  if c.args.again == 1 then
    local granted = taken_before(c, c.args.token)
    if #granted > 0 then return {c.us, granted, 1} end
  end
  local ok, granted, more = pcall(take, c, c.args)
  fcall.settle(c)
  if not ok then error(granted) end
  return {c.us, granted, more}
end
register('claim', claim, 'allow-oom')  -- a full store is drained by claims

-- Gives back an attempt that did not end by itself, uncounted: the task returns to its place, or is cancelled if a
-- client asked for that. row: {id, number, token, record (absent: a brief one)}. Returns the task's state, or 'fenced'.
local function give_back(c, row)
  local task, record = read_held(c, row, TO_GIVE_BACK), unpack(row, 4)
  if not task or task[STATE] ~= 'running' then return 'fenced' end
  moves.record_attempt(c, task, 'released', record)
  if task.cancel then
    moves.close(c, task, 'cancelled', 'cancelled')
    return 'cancelled'
  end
  moves.back_to_ready(c, task)
  return 'ready'
end

-- Renews an attempt {id, number, token}. Returns 'ok', 'cancel' or 'fenced'. No row: it would take a third longer.
local function renew_one(c, row, known)
  local id, number, token = unpack(row)
  local state, last, held, packed, cancel =
    unpack(redis.pcall('HMGET', key.task(id), STATE, 'attempt', 'token', PLAN, 'cancel'))
  if state ~= 'running' or tonumber(last) ~= number or held ~= token or not pcall(plans.read, packed) then
    return 'fenced'
  end
  known[id] = true
  renew(c, id)
  return cancel and 'cancel' or 'ok'
end

-- args {db, worker, lease, heartbeat, held = {{id, number, token}, …}, claims = {token, …}, upto, keep, failed_keep}
-- Renews what is held. Other attempts of the worker are given back uncounted: it does not know of them. Excepted are
-- those of `claims`, which are under way, and those of claims after number `upto`, which were made after this call was
-- sent; it may come late. Returns {now_us, {'ok' | 'cancel' | 'fenced' | 'damaged', …}}
local function extend(keys, args)
  local c = fcall.begin(keys, args)
  local a = c.args
  local known, under_way, unknown = {}, {}, {}
  local answers = fcall.answer_each(c, 'extend', a.held, renew_one, known)
  for _, token in ipairs(a.claims) do under_way[token] = true end
  for _, attempt in ipairs(attempts_of(a.worker)) do
    if (attempt.nth or 0) <= a.upto and not known[attempt.id] and not under_way[attempt.token or ''] then
      unknown[#unknown + 1] = {attempt.id, attempt.number, attempt.token}
    end
  end
  for i, answer in ipairs(fcall.answer_each(c, 'release', unknown, give_back)) do
    local id = unpack(unknown[i])
    if answer == 'fenced' then call('HDEL', key.held(a.worker), id) end
  end
  call('PEXPIRE', key.held(a.worker), HELD_TTL)
  if #a.heartbeat > 0 then peers.hear(c, 'workers', a.worker, a.heartbeat) end
  fcall.settle(c)
  moves.wake(c)
  return {c.us, answers}
end
register('extend', extend, 'allow-oom')  -- otherwise a full store would end every lease

-- Records the end of one attempt {id, number, token, verdict, reason, record, out, err, out_size, err_size}. Returns
-- the new state of the task, 'recorded' (if it was before) or 'fenced'.
-- verdict: succeeded | failed | final (failed, no retry)
local function finish_one(c, row)
  local id, number, _, verdict, reason, record, out, err, out_size, err_size = unpack(row)
  local task = read_held(c, row, TO_FINISH)
  if not task then return 'fenced' end
  if task[STATE] ~= 'running' then return 'recorded' end
  local fields, to = {moves.attempt_field(task.path, number), record}, 'succeeded'
  if verdict ~= 'succeeded' then
    local failures = (tonumber(task.failures) or 0) + 1
    add(fields, 'failures', int(failures))
    local interval = verdict ~= 'final' and not task.cancel and tonumber(task.plan.retry[failures])
    if interval then
      moves.retry(c, task, interval, reason, fields)
      return 'scheduled'
    end
    to = task.cancel and 'cancelled' or 'failed'
  end
  add(fields, 'out_size', int(out_size))
  add(fields, 'err_size', int(err_size))
  if #out > 0 then add(fields, 'out', out) end
  if #err > 0 then add(fields, 'err', err) end
  task.bytes = #out + #err
  moves.close(c, task, to, to == 'succeeded' and '' or reason, fields)
  return to
end

-- args {db, worker, keep, failed_keep, ended = {row of finish_one, …}, lease, claim}; claim: absent, or {queues, n,
-- token, nth, hints}: claimed by the same call. Returns {now_us, {answer, …}}, then tasks and more as of take.
local function finish_all(c)
  local answers = fcall.answer_each(c, 'finish', c.args.ended, finish_one)
  local ok, granted, more = pcall(function()  -- if it fails, the ends are counted, and the worker repeats the call
    outputs.settle(c)
    if c.args.claim then return take(c, c.args.claim) end
  end)
  fcall.settle(c)
  moves.announce(c)
  if not ok then error(granted) end
  return {c.us, answers, granted, more}
end

local function finish(keys, args) return finish_all(fcall.begin(keys, args)) end
register('finish', finish)  -- no flag: it adds outputs

local function finish_cut(keys, args)
  local c = fcall.begin(keys, args)
  for _, row in ipairs(c.args.ended) do
    local out, err = unpack(row, 7, 8)
    if #out + #err > CUT_BYTES then
      return redis.error_reply('KINGTASK finish_cut takes outputs of at most ' .. CUT_BYTES .. ' bytes')
    end
  end
  return finish_all(c)
end
register('finish_cut', finish_cut, 'allow-oom')  -- outputs are short: a full store takes them, and is drained

-- args {db, worker, keep, failed_keep, attempts = {{id, number, token, record}, …}}: given back, uncounted.
-- Returns {now_us, {'ready' | 'cancelled' | 'fenced' | 'damaged', …}}
local function release(keys, args)
  local c = fcall.begin(keys, args)
  local answers = fcall.answer_each(c, 'release', c.args.attempts, give_back)
  fcall.settle(c)
  moves.wake(c)
  return {c.us, answers}
end
register('release', release, 'allow-oom')  -- others are to run these tasks

end
