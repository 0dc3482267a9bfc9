"""The worker: claims tasks, runs each as a process group of its own, reports how it ended.

Theory of operation. `slots` decides and does nothing: events and `now` in, actions out (claim, spawn, stop, finish,
release, extend). `worker` does what it says, on one asyncio loop with callbacks: no task or future per attempt.
`attempt` turns a claim into a process and its end into a report, with the help of `executable` (which file),
`environment` (what it sees), `spawn` (start it), `process` (watch it to its end), `output` (keep a bounded part of what
it writes) and `verdict` (did it succeed). `subscriber` hears the brokers' hints: one that is lost costs at most
`period`. `guard` is a second, tiny process that kills what is running when this one is killed.

Rules.
  * Redis decides. A hint, be it that something is ready or is to be cancelled, only makes the worker ask.
  * Whatever the worker was given it renews, until Redis has confirmed how it ended.
  * Losing Redis stops nothing: results wait, and are delivered under the fence of their claim when it is back.
  * A process is reaped only after its group was killed, so a process group number never means somebody else's.
"""
