"""The broker: receives requests, calls the function library in Redis, sends replies and wakeups.

One asyncio loop with callbacks; `server` composes the parts, and ARCHITECTURE.md follows each request through them.
Nothing here is the record: a broker that dies loses only requests that have no reply yet.
"""
