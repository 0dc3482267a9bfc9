do  -- What ended tasks keep, outputs and what they were given: until their record vanishes, or there is too much of it.

-- The member has the instant because an id may be used again before its old entry went. `suffix`: '' or ' <owner>'.
local function member_of(id, ended, kind, bytes, suffix) return id .. ended .. kind .. int(bytes) .. suffix end

-- Returns bytes, owner or nil, the instant of the end and ':' or '+'. Of rubbish 0.
local function parse(member)
  local ended, kind, bytes, owner = string.match(member, '^(%d+)([:+])(%d+) ?(.*)$', 37)
  return tonumber(bytes or 0), owner ~= '' and owner or nil, ended, kind
end

-- The longest time of LIMITS, or nil, and the suffix of members.
local function limits_of(limits)
  if not limits then return nil, '' end
  local longest, suffix = string.match(limits, '^(%d*)(.*)$')
  return tonumber(longest), suffix
end

local function count_of(c, owner, bytes)
  local before = c.kept_of[owner] or tonumber(redis.pcall('ZSCORE', key.kept_bytes, owner)) or 0
  c.kept_of[owner] = before + bytes
end

local function enter(c, class, member, vanishes, bytes, suffix)
  local new, order = c.ended or {bytes = 0, order = {}, vanish = {}, owned = {}}, int(class * CLASS + c.now)
  c.ended, new.bytes = new, new.bytes + bytes
  add(new.order, order, member)
  add(new.vanish, int(vanishes), member)
  if suffix ~= '' then new.owned[#new.owned + 1] = {string.sub(suffix, 2), order, member, bytes} end
end

-- Collects the entries of a task that ends: task.bytes of outputs, `given` bytes. Returns for how many ms its record is
-- kept: `keep` within the limits of its client.
function outputs.collect(c, task, to, keep, given, limits)
  local longest, suffix = limits_of(limits)
  if longest and longest < keep then keep = longest end
  local class, vanishes, bytes = to == 'failed' and 2 or 0, c.now + keep, task.bytes or 0
  if bytes > 0 then enter(c, class, member_of(task.id, c.now_text, ':', bytes, suffix), vanishes, bytes, suffix) end
  bytes = tonumber(given or 0) or 0
  if bytes > 0 then enter(c, class + 1, member_of(task.id, c.now_text, '+', bytes, suffix), vanishes, bytes, suffix) end
  return keep
end

-- Writes the collected entries.
function outputs.keep(c)
  local new = c.ended
  if not new then return end
  c.ended = nil
  call('ZADD', key.outputs_ended, unpack(new.order))
  call('ZADD', key.outputs_until, unpack(new.vanish))
  c.kept = c.kept + new.bytes
  for _, entry in ipairs(new.owned) do
    local owner, order, member, bytes = unpack(entry)
    redis.pcall('ZADD', key.kept(owner), order, member)
    count_of(c, owner, bytes)
  end
end

-- Removes an entry; returns how many bytes it had counted.
local function forget(c, member)
  local bytes, owner = parse(member)
  call('ZREM', key.outputs_ended, member)
  bytes = bytes * call('ZREM', key.outputs_until, member)
  c.kept = c.kept - bytes
  if owner then
    redis.pcall('ZREM', key.kept(owner), member)
    count_of(c, owner, -bytes)
  end
  return bytes
end

-- The record of a task is removed, which ended at this instant with so many bytes of outputs.
function outputs.forget_one(c, id, ended, bytes, given, limits)
  local _, suffix = limits_of(limits)
  forget(c, member_of(id, ended, ':', bytes, suffix))
  forget(c, member_of(id, ended, '+', tonumber(given or 0) or 0, suffix))
end

-- A record vanishes by its TTL: what it kept no longer counts. Returns how many entries there were.
function outputs.forget_vanished(c)
  local members = call('ZRANGEBYSCORE', key.outputs_until, '-inf', c.now_text, 'LIMIT', 0, BUDGET)
  for _, member in ipairs(members) do forget(c, member) end
  return #members
end

-- Drops what the first entries of an index stand for, until `excess` bytes are gone. Returns how many entries (BUDGET
-- if specs have ended it), and whether no entry is left.
local function drop(c, index, excess)
  local found, n, hashed = call('ZRANGE', index, 0, BUDGET - 1), 0, 0
  while n < #found and excess > 0 and hashed < CLAIM_BYTES do
    n = n + 1
    local member = found[n]
    local path, bytes, _, ended, kind = key.task(string.sub(member, 1, 36)), parse(member)
    if redis.pcall('HGET', path, 'finished') == ended then  -- else the record is gone, or another one has its id
      if kind == ':' then
        call('HDEL', path, 'out', 'err')
        call('HSET', path, 'dropped', '1')
      else
        call('HSET', path, SPEC, redis.sha1hex(call('HGET', path, SPEC) or ''), GIVEN, '0')
        hashed = hashed + bytes
      end
    end
    excess = excess - forget(c, member)
  end
  return hashed < CLAIM_BYTES and n or BUDGET, n == #found and n < BUDGET
end

-- Drops in the order of the index until at most `most` bytes are left. Returns as drop.
function outputs.drop(c, most)
  if c.kept <= most then return 0 end
  local n, emptied = drop(c, key.outputs_ended, c.kept - most)
  if emptied then c.kept = 0 end  -- nothing is left: an index was deleted from outside
  return n
end

-- The same for BUDGET owners, chosen at random. bounds: {owner → the most bytes that its ended tasks may keep}, 0: any
-- number; '' stands for each owner that is not named. Returns how many entries it dropped.
function outputs.bound(c, bounds)
  if not next(bounds) then return 0 end
  local n, owners, kept = 0, split(redis.pcall('ZRANDMEMBER', key.kept_bytes, BUDGET, 'WITHSCORES'))
  for i, owner in ipairs(owners) do
    local most = bounds[owner] or bounds[''] or 0
    local excess = (c.kept_of[owner] or tonumber(kept[i])) - most
    if most > 0 and excess > 0 and n < BUDGET then
      local ok, dropped, emptied = pcall(drop, c, key.kept(owner), excess)
      if ok then n = n + dropped else fcall.failed(c, 'tick', owner, dropped) end
      if emptied then c.kept_of[owner] = 0 end
    end
  end
  return n
end

-- Writes what the call has changed.
function outputs.settle(c)
  if c.ended then
    outputs.keep(c)
    if c.max_kept then outputs.drop(c, c.max_kept) end  -- otherwise there was no tick yet
  end
  for owner, bytes in pairs(c.kept_of) do
    if bytes > 0 then redis.pcall('ZADD', key.kept_bytes, int(bytes), owner)
    else redis.pcall('ZREM', key.kept_bytes, owner) end
  end
end

end
