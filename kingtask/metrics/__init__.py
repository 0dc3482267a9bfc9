"""The metrics of a daemon, served to Prometheus by a small HTTP server on the daemon's own loop.

Theory of operation. Broker and worker count frequent events in plain integers (`call_times`). A scrape collects the
numbers as metrics of prometheus-client and formats them as text (`collector`). `scrape_server` answers on the loop of
the daemon, not in a thread: a thread that formats text holds the interpreter for up to 5 ms at a time
(sys.getswitchinterval), and would report health while the loop hangs. The loop runs between any two parts of the text,
so a scrape delays other work by less than a millisecond.

Rules.
  * prometheus-client takes 3 MB and 25 ms: `collector`, `scrape_server` and the module `metrics` of each daemon import
    it, and are imported only with `metrics_addr`. Without `metrics_addr` nothing is measured either.
  * Labels are bounded: queues by `max_queues` and by MAX_QUEUES per scrape, all others by constants of the code.
  * Frequent scrapes cost no more: all scrapes of one second share one text, and connections are few and bounded.
"""
