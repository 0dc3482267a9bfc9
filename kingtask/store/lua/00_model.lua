#!lua name=kingtask_@HASH@
--[[
The store: every change of a task's state is one call of a function of this library. Nothing else writes these keys,
except that a worker stores its own heartbeat while this library is missing (store.py).

library.py joins the sources in the order of their names. The locals of this source are shared. Each later source is a
`do … end` block: its locals are its own, and it fills one of the module tables below. So no limit of Lua 5.1 is near
(200 locals of the whole text, 60 upvalues of a function).

Rules
  * Check everything, then write: an error never leaves half a change.
  * Every function may be repeated: tasks are keyed by id, attempts by number and token.
  * TIME is read once per call. Due instants and leases are compared here only.
  * A call works on about 200 items at most (10,000 moves block the server for 100 ms); callers split longer lists.
  * A record, or an index of one queue, client or worker, that was lost or damaged costs its own tasks, no others.
  * Numbers go into text with %.0f: `..` would round 16 digits to 14.
  * A redis.call costs about 5 us, whatever it does: read a hash in one call, write it in one call.

Keys. All have the prefix `{<namespace>}:` (one hash slot); KEYS[1] is `{<namespace>}:meta`.
  task:<id>        hash   the task, fields below; no TTL while it lives, then the time for which its record is kept
  schedule         zset   id → due ms, plus a fraction that keeps the order of submission of the first 1,023 of that ms
  ready:<queue>    zset   id → place: (9 - priority) * 2^48 + sequence, so by priority, then first in first out
  running          zset   id → end of the lease, ms
  expiry           zset   id → ms; waiting tasks that may not be started after an instant
  owned:<owner>    zset   id → when accepted, ms; living tasks of an owner whose number of tasks is limited
  named:<owner>    zset   queue → ms; known names that an owner made whose number of names is limited
  held:<worker>    hash   id → attempt number ':' number of the claim ':' token; the worker's attempts (TTL)
  finished:<state> zset   id → ms; recent terminal tasks, capped
  outputs:ended    zset   what ended tasks keep, in the order of dropping: id, ms at which the task ended, ':' (outputs)
                          or '+' (what it was given), bytes, and ' <owner>' if they count for the bound of an owner →
                          class * 2^42 + that ms. Classes: outputs 0, given 1, of failed tasks 2 and 3
  outputs:until    zset   the same member → ms at which its record vanishes; all its entries are removed then
  kept:<owner>     zset   the same members of one owner whose bytes are bounded, with the same scores
  kept             zset   such an owner → bytes
  queues           hash   queue → '0', or '1' when paused; at most max_queues
  counts:<queue>   hash   totals, the numbers now `scheduled` and `running`, `touched` (ms), and the totals as msgpack
                          maps: `began`, when the minute of `touched` began, `before`, when the one before it began;
                          `owner` whose number of names counts this one
  workers, brokers hash   name → heartbeat: ms as 13 digits, then an opaque blob; capped
  workers:seen, brokers:seen  zset   name → ms of that heartbeat
  meta             hash   schema, cluster, sequence (of places), ticked (ms), returned (ms: end of an outage),
                          live (tasks that have not ended), kept (bytes that ended tasks keep), max_kept (as the
                          last tick set it)

Fields of task:<id>
  PLAN (p)         msgpack array {name, start, retry, queue, priority, delay, keep, expires, on_lost}, as sent, in ms;
                   0 = absent, queue '' = default, on_lost 1 = fail; defaults at its end are left out
  SPEC (s)         as sent, opaque here (arguments, stdin, …). Plan and spec are the identity of a request: the same id
                   with the same two is the same request, repeated.
  STATE (t), CREATED (c, ms)   a waiting task has these four fields only. Their names have one letter: of ten million
                   waiting tasks every letter is 10 MB (366 → 350 bytes a task), and every argument of a call costs time
  OWNER (w)        who may act on the task with `of: own`; absent: an anonymous client's. A requeue keeps it
  QUOTA (o)        the owner whose number of tasks counts this one; removed at the end of the task
  GIVEN (g)        bytes of SPEC, if at least 1 KiB; '0' once it was dropped: SPEC then is the SHA-1 of what it was
  LIMITS (k)       of the client: the longest time for which the record is kept, ms or nothing, then ' <owner>' if what
                   it keeps counts for a bound of this owner; absent: none
  due              ms; absent while scheduled (the score has it); absent if never scheduled: then its start or CREATED
  attempt, token, worker, claimed, place   fence of the last claim, its instant, and the task's place in ready then
                                    (they stay after the end: to remove them would be one more call)
  failures, lost, graced            attempts that failed; attempts presumed lost; outages forgiven to this attempt
  cancel, watched                   '1': a client asked to cancel it; a client waits for its end
  attempt:<n>      msgpack array {n, worker, started, ended, reason, exit, signal, message, stderr}; -1 = absent
  finished, reason, out, err, out_size, err_size, origin
  dropped                           '1': out and err were dropped to make room; their sizes stay

Tasks go from function to function as rows {id, path, plan, state, …}: 20_moves.lua has their fields.
--]]

local LIVE_ATTEMPTS = 72      -- records kept per task: 1 + 64 retries, some lost and released ones
local FINISHED_CAP = 10000    -- entries of each finished:<state>
local HELD_TTL = 86400000     -- ms; far past any lease, short enough to vanish by itself
local HEARTBEAT_TTL = 60000   -- ms; a worker or broker silent for longer is no longer listed
local PEERS_CAP = 2000        -- workers listed, and brokers listed: those heard from last
local OUTAGE = 3000           -- ms without a tick after which leases are forgiven (brokers tick every second)
local MAX_GRACED = 3          -- outages forgiven to one attempt
local BUDGET = 200            -- items of one kind in one tick, claim or page
local RECOUNT_QUEUES = 1000   -- with more queues `live` is not recounted: these take 1 ms
local OWNED_SAMPLE = 50       -- tasks or queues of an owner that are examined when it has as many as it may have
local CLAIM_BYTES = 1048576   -- bytes of specs after which a claim ends, or a drop of specs
local CUT_BYTES = 4096        -- bytes of outputs that finish_cut takes
local GIVEN_BYTES = 1024      -- what was given counts from this size on
local IDLE_QUEUE = 86400000   -- ms after which the name of an empty queue is forgotten
local BAND = 281474976710656  -- 2^48: room for the sequence below each priority
local CLASS = 4398046511104   -- 2^42: room for the ms (until 2109) in each class of `outputs:ended`
local STEP = 1 / 1024         -- fractions of a ms in `schedule`: exact in a double until the year 2248

local PLAN, SPEC, STATE, CREATED, OWNER, QUOTA, GIVEN, LIMITS = 'p', 's', 't', 'c', 'w', 'o', 'g', 'k'

local TRANSITIONS = {
  scheduled = {ready = true, cancelled = true, expired = true},
  ready = {running = true, cancelled = true, expired = true},
  running = {succeeded = true, failed = true, scheduled = true, ready = true, cancelled = true},
  succeeded = {}, failed = {}, cancelled = {}, expired = {},
}
local TERMINAL = {succeeded = true, failed = true, cancelled = true, expired = true}

-- The module tables: 10_call fills the first three, then each source one.
local fcall, counts, plans, moves, outputs, tasks, peers = {}, {}, {}, {}, {}, {}, {}

local call  -- redis.call, which exists only while a function runs: fcall.begin sets it
local function floor(n) return n - n % 1 end
local function int(n) return string.format('%.0f', n) end

local function add(list, field, value)
  local n = #list
  list[n + 1], list[n + 2] = field, value
end

local function flat(map)
  local list = {}
  for field, value in pairs(map) do add(list, field, value) end
  return list
end

-- The two lists in a flat reply {member, score, …}.
local function split(flat)
  local members, scores = {}, {}
  for i = 1, #flat / 2 do members[i], scores[i] = flat[2 * i - 1], flat[2 * i] end
  return members, scores
end

-- Flags: 'no-writes' functions also run on a full or a read-only server. 'allow-oom' functions write and also run on a
-- full one: they drain it, or write next to nothing. A function without a flag adds work or data.
local function register(name, callback, ...)
  redis.register_function{function_name = 'kingtask_' .. name .. '_@HASH@', callback = callback, flags = {...}}
end

-- The names of the keys. One call runs at a time, so that the prefix of the running call can stand here.
local key, prefix = {}, nil

function key.use(meta)
  if meta == key.meta then return end
  prefix = string.sub(meta, 1, -5)
  key.meta, key.queues = meta, prefix .. 'queues'
  key.schedule, key.running, key.expiry = prefix .. 'schedule', prefix .. 'running', prefix .. 'expiry'
  key.outputs_ended, key.outputs_until = prefix .. 'outputs:ended', prefix .. 'outputs:until'
  key.kept_bytes = prefix .. 'kept'
end

function key.task(id) return prefix .. 'task:' .. id end
function key.ready(queue) return prefix .. 'ready:' .. queue end
function key.counts(queue) return prefix .. 'counts:' .. queue end
function key.owned(owner) return prefix .. 'owned:' .. owner end
function key.named(owner) return prefix .. 'named:' .. owner end
function key.held(worker) return prefix .. 'held:' .. worker end
function key.kept(owner) return prefix .. 'kept:' .. owner end
function key.finished(state) return prefix .. 'finished:' .. state end
function key.peers(kind) return prefix .. kind end  -- workers or brokers
function key.seen(kind) return prefix .. kind .. ':seen' end
function key.channel(db, what) return prefix .. db .. ':' .. what end
