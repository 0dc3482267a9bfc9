"""Configuration of the broker and the worker: YAML files, read once, checked, then frozen values.

`document` reads a file and knows on which line each value stands; `address` reads `host:port` and `ipc://…`;
`settings` has the keys, their ranges and what must hold between them, by the `checks` of paths; `load` puts these
together; `reload` reads them anew while the daemon runs.
"""

from kingtask.config.document import located
from kingtask.config.load import load_broker, load_worker
from kingtask.config.reload import Reload
from kingtask.config.settings import BrokerConfig, WorkerConfig

__all__ = ["BrokerConfig", "Reload", "WorkerConfig", "load_broker", "load_worker", "located"]
