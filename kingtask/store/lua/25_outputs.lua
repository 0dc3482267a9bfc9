do  -- Outputs are kept until their record vanishes, or until there are too many bytes of them.

-- Takes rows {id, bytes, keep}. The member has the instant because an id may be used again before its old entry went.
function outputs.keep(c, rows)
  if #rows == 0 then return end
  local ended, vanish = {}, {}
  for _, output in ipairs(rows) do
    local member = output.id .. c.now_text .. ':' .. int(output.bytes)
    add(ended, c.now_text, member)
    add(vanish, int(c.now + output.keep), member)
    c.kept = c.kept + output.bytes
  end
  call('ZADD', key.outputs_ended, unpack(ended))
  call('ZADD', key.outputs_until, unpack(vanish))
end

local function forget(c, member)
  call('ZREM', key.outputs_ended, member)
  c.kept = c.kept - call('ZREM', key.outputs_until, member) * (tonumber(string.match(member, ':(%d+)$')) or 0)
end

-- The record of a task is removed, which ended at this instant with so many bytes of outputs.
function outputs.forget_one(c, id, ended, bytes) forget(c, id .. ended .. ':' .. int(bytes)) end

-- A record vanishes by its TTL: its outputs no longer count. Returns how many there were.
function outputs.forget_vanished(c)
  local members = call('ZRANGEBYSCORE', key.outputs_until, '-inf', c.now_text, 'LIMIT', 0, BUDGET)
  for _, member in ipairs(members) do forget(c, member) end
  return #members
end

-- Drops the oldest outputs until at most `most` bytes are left. Returns how many it dropped.
function outputs.drop(c, most)
  if c.kept <= most then return 0 end
  local found = call('ZRANGE', key.outputs_ended, 0, BUDGET - 1, 'WITHSCORES')
  local n = 0
  while n < #found / 2 and c.kept > most do
    local member, ended = found[2 * n + 1], found[2 * n + 2]
    local path = key.task(string.sub(member, 1, 36))
    if redis.pcall('HGET', path, 'finished') == ended then  -- else the record is gone, or another one has its id
      call('HDEL', path, 'out', 'err')
      call('HSET', path, 'dropped', '1')
    end
    forget(c, member)
    n = n + 1
  end
  if n == #found / 2 and n < BUDGET then c.kept = 0 end  -- nothing is left: an index was deleted from outside
  return n
end

end
