-- Outputs are kept until their record vanishes, or until there are too many.

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
