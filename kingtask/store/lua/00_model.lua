#!lua name=kingtask_@HASH@
--[[
The store: every change of a task's state is one call of one function below, and nothing else writes these keys.

Rules
  * Check everything, then write: an error never leaves half a change.
  * Every function may be sent again: tasks are keyed by id, attempts by number and token.
  * TIME is read once per call. Due instants and leases are compared here only.
  * A call works on at most some 200 items (10,000 moves block the server for 100 ms); callers split what is longer.
  * A record that was deleted or damaged from outside costs that task, never the other tasks of a call.
  * Numbers go into text with %.0f: `..` would round 16 digits to 14.

Keys, all behind the prefix `{<namespace>}:` (one hash slot), of which KEYS[1] is `{<namespace>}:meta`
  task:<id>        hash   the task, fields below; no TTL while it lives, then the time its record is kept
  schedule         zset   id → due ms, plus a fraction that keeps submission order among the first 1,023 of that ms
  ready:<queue>    zset   id → place: (9 - priority) * 2^48 + sequence, so by priority, then first in first out
  running          zset   id → end of the lease, ms
  expiry           zset   id → ms; waiting tasks that may not be started after an instant
  owned:<client>   zset   id → when accepted, ms; its tasks that have not ended, if their number is limited
  held:<worker>    hash   id → attempt number ':' number of the claim ':' token; what a worker was given (TTL)
  finished:<state> zset   id → ms; recent terminal tasks, capped
  outputs:ended    zset   id, ms its task ended, ':', bytes → that ms; outputs kept, the oldest are dropped first
  outputs:until    zset   the same → ms its record vanishes; both are taken off at that time
  queues           hash   queue → '0', or '1' when paused; at most max_queues
  counts:<queue>   hash   totals, the numbers now `scheduled` and `running`, `touched` (ms), and as msgpack maps of totals
                          `began` and `before`: when the minute of that instant began, and the minute before it
  workers, brokers hash   name → heartbeat: ms as 13 digits, then an opaque blob; capped
  workers:seen, brokers:seen  zset   name → ms of that heartbeat
  meta             hash   schema, cluster, sequence (of places), ticked (ms), returned (ms: end of an outage),
                          live (tasks that have not ended), kept (bytes of outputs), max_kept (as the last tick said)

Fields of task:<id>
  p (the plan)     msgpack array {name, start, retry, queue, priority, delay, keep, expires, on_lost}, as sent, in ms;
                   0 = absent, queue '' = default, on_lost 1 = fail; what is default at its end is left out
  s (the spec)     as sent, opaque here (arguments, stdin, …). Plan and spec are the identity of a request: the same id
                   with the same two is the same request sent again.
  t (the state), c (when created, ms)   a waiting task has no more than these four, of one letter each: of ten million
                   waiting tasks every letter is 10 MB, and every further argument of a call costs time, too
  due              ms; absent while scheduled, the score says it; and if never scheduled: its start or c then
  attempt, token, worker, claimed, place   the fence of the last claim, when that was, and its place in ready then
                                    (they stay when it has ended: to take them off would be one more call)
  failures, lost, graced            attempts that failed; that were presumed lost; outages forgiven to this attempt
  cancel, watched                   '1': cancel was asked for; a client waits for the end
  o (the owner)                     the client, if the number of its tasks is limited; until the task ends
  attempt:<n>      msgpack array {n, worker, started, ended, reason, exit, signal, message, stderr}; -1 = absent
  finished, reason, out, err, out_size, err_size, origin
  dropped                           '1': out and err were dropped to make room, of which the sizes are left
--]]

local LIVE_ATTEMPTS = 72      -- records kept per task: 1 + 64 retries, some lost and released ones
local FINISHED_CAP = 10000    -- entries of each finished:<state>
local HELD_TTL = 86400000     -- ms; far past any lease, short enough to vanish by itself
local HEARTBEAT_TTL = 60000   -- ms; a worker or broker silent for longer is no longer listed
local ALIVE = 20000           -- ms; heard from since then: a worker heartbeats every 5 s, a broker every second
local PEERS_CAP = 2000        -- workers listed, and brokers: those heard from last
local OUTAGE = 3000           -- ms without a tick after which the leases are forgiven (brokers tick every second)
local MAX_GRACED = 3          -- outages forgiven to one attempt
local BUDGET = 200            -- items of one kind in one tick, claim or page
local RECOUNT_QUEUES = 1000   -- so many can be counted anew in one tick: 1 ms
local OWNED_LOOK = 50         -- of a client's tasks looked at when it has as many as it may have
local PAGE = 100              -- queues in one look at them; a small hash is looked at whole (512 at most)
local CLAIM_BYTES = 1048576   -- of specs in one claim's reply, after which it ends
local IDLE_QUEUE = 86400000   -- ms after which the name of an empty queue is forgotten
local BAND = 281474976710656  -- 2^48: room for the sequence below each priority
local STEP = 1 / 1024         -- fractions of a ms in `schedule`: exact in a double until the year 2248

local TRANSITIONS = {
  scheduled = {ready = true, cancelled = true, expired = true},
  ready = {running = true, cancelled = true, expired = true},
  running = {succeeded = true, failed = true, scheduled = true, ready = true, cancelled = true},
  succeeded = {}, failed = {}, cancelled = {}, expired = {},
}
local TERMINAL = {succeeded = true, failed = true, cancelled = true, expired = true}

local function call(...) return redis.call(...) end  -- redis.call exists only while a function runs
local function floor(n) return n - n % 1 end

local function int(n) return string.format('%.0f', n) end

local function register(name, callback, ...)
  redis.register_function{function_name = 'kingtask_' .. name .. '_@HASH@', callback = callback, flags = {...}}
end
