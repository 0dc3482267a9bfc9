"""The metrics of a daemon, served to Prometheus on the daemon's own loop.

Broker and worker count frequent events in plain integers (`call_times`). A scrape formats them as text (`collector`)
between other work of the loop: a thread would hold the interpreter for up to 5 ms at a time (sys.getswitchinterval),
and would report health while the loop hangs. All scrapes of one second share one text (`scrape_server`).

Rules: prometheus-client takes 3 MB and 25 ms, so it is imported only with `metrics_addr`, without which nothing is
measured. Labels are bounded: queues by MAX_QUEUES per scrape, all others by constants of the code.
"""
