"""A worker process as `kingtask-worker -c FILE` runs it, without the command line's imports."""

from __future__ import annotations

import sys

from kingtask import config, log
from kingtask.worker import host

if __name__ == "__main__":
    settings = config.load_worker(sys.argv[1])
    log.setup("worker", settings.log_level, settings.log_path)
    sys.exit(host.run(settings, lambda: config.load_worker(sys.argv[1]), sys.argv[1]))
