"""The broker: requests in, one atomic call to Redis each batch, wakeups out.

Theory of operation. One asyncio loop with callbacks. `edge` reads the ROUTER without blocking and hands over whole
messages; `ops` parses each, calls one action and replies; submits of one drain travel as one function call (`batch`).
`ticker` keeps the heap of instants and calls `tick` when the earliest is reached, at least once a second. `waits`
answers clients that wait for an end, `wakeups` tells workers that there is something to claim. Nothing here is the
record: a broker that dies loses only what had no reply yet.
"""
