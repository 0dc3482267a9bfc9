"""The broker: receives requests, calls the function library in Redis, sends replies and wakeups.

Theory of operation. One asyncio loop with callbacks. `router` reads the ROUTER socket without blocking and hands whole
messages to `dispatcher`, which makes the call of each op (`ops`) and replies; `submit` stores all tasks of one drain by
one call. `ticker` keeps the next instants in `due_heap`, and calls `tick` when the earliest is reached, at least once a
second. `waiters` answers clients that wait for the end of a task, `wakeups` sends hints to workers. `auth` and
`authorizer` decide who may do what, `flood_guard` and `counters` limit what hostile peers can cost. Nothing here is the
record: a broker that dies loses only requests that have no reply yet.
"""
