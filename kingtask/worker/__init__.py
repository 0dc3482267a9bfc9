"""The worker: claims tasks, runs each as a process group of its own, reports its outcome.

`worker_state` decides and does nothing: events and `now` in, actions out (claim, spawn, stop, finish, release, extend).
`worker` carries the actions out, on one asyncio loop with callbacks: no task or future per attempt. `attempt` turns a
claim into a process and the end of the process into a report. ARCHITECTURE.md shows the way of a claim through them.

Rules.
  * Redis decides, also which task is next. A hint, of a ready task or of a cancel, only makes the worker ask Redis.
  * A worker renews each claimed attempt until Redis has confirmed the end of the attempt.
  * An outage of Redis stops no attempt: reports wait, and are delivered later under the fence of their claim.
  * A process is reaped only after its group was killed, so a group number never means another group.
"""
