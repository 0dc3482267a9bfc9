"""Figures for Prometheus: what a daemon counts, as text, over a small HTTP server on its own loop.

Theory of operation. What happens often is counted in plain integers by whoever does it (`histogram`, `calls`, and
numbers that broker and worker keep anyway); only when somebody asks are they gathered into families (`family`) and
written as text (`exposition`, the only part that needs prometheus-client; 5 MB, so it is imported when metrics are on).
`endpoint` answers on the daemon's loop and not in a thread of its own: a thread that writes text holds the interpreter
for up to 5 ms at a time (sys.getswitchinterval), and would say that all is well while the loop hangs. The loop is given
back after every few samples, so that a scrape costs what is on time some tenths of a millisecond.

Rules.
  * Without `metrics_addr` nothing of this exists, and nothing is measured for it.
  * Labels are bounded: queues by `max_queues` and MAX_QUEUES of a scrape, all others by what the code knows.
  * Nobody who scrapes can make it cost more: one text at a time, kept for a second; few connections, each with bounds.
"""
