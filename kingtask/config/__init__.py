"""Configuration of the broker and the worker: YAML files, read once, checked, then frozen values.

`document` reads a file and records the line of each value. `settings` has the keys, their ranges and the rules between
them; `checks` has the rules for paths. `load` combines these modules, and `reload` applies a changed file to a running
daemon.
"""

from kingtask.config.document import located
from kingtask.config.load import exposed, load_broker, load_worker
from kingtask.config.reload import Reload
from kingtask.config.settings import BrokerConfig, WorkerConfig

__all__ = ["BrokerConfig", "Reload", "WorkerConfig", "exposed", "load_broker", "load_worker", "located"]
