"""The options that most commands share: --json, and those that say how to reach a broker, which `connect` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kingtask.cli.param_types import SECONDS
from kingtask.curve import client_keys
from kingtask.endpoint import DEFAULT_PORT, nearest
from kingtask.errors import ConfigurationError

if TYPE_CHECKING:
    from kingtask.client import Client

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

DEFAULT_TIMEOUT_S = 10.0


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    context.meta[f"{__name__}.{option.name}"] = value


def _given(name: str, default: Any = None) -> Any:
    """Return the value of an option that is not passed to the command."""
    return click.get_current_context().meta.get(f"{__name__}.{name}", default)


_option = partial(click.option, expose_value=False, callback=_remember)
_JSON = click.option("--json", "as_json", is_flag=True, help="Lines of JSON.")
_BROKER = _option(
    "--broker",
    metavar="ADDRESS",
    multiple=True,
    envvar="KINGTASK_BROKER",
    help="Broker's address (host:port, tcp://…, ipc://…); more with commas or again."
    f" [default: ipc:///run/kingtask/broker.sock if /run/kingtask exists, else 127.0.0.1:{DEFAULT_PORT}]",
)
_CURVE_KEY, _SERVER_KEY = (
    _option(name, metavar="FILE", help=f"{what}, if they ask for keys. [default: {variable}]")
    for name, variable, what in (
        ("--curve-key", "KINGTASK_CURVE_KEY", "This client's secret key"),
        ("--server-key", "KINGTASK_SERVER_KEY", "The brokers' public key"),
    )
)
_TIMEOUT = _option(
    "--timeout",
    metavar="S",
    type=SECONDS,
    default=DEFAULT_TIMEOUT_S,
    help=f"How long a broker may take to answer. [default: {DEFAULT_TIMEOUT_S:.0f} s]",
)


def shared_options(command: Decorated) -> Decorated:
    """Add --json, passed as `as_json`, and the options that `connect` reads."""
    return shared_options_without_timeout(_TIMEOUT(command))


def shared_options_without_timeout(command: Decorated) -> Decorated:
    return _JSON(_BROKER(_CURVE_KEY(_SERVER_KEY(command))))


def addresses() -> tuple[str, ...]:
    """Return the brokers that --broker or its variable names, else the nearest. Raises ConfigurationError."""
    values = _given("broker")
    named = tuple(part.strip() for value in values for part in value.split(",") if part.strip())
    if values and not named:
        raise ConfigurationError("--broker, or KINGTASK_BROKER, names no address: give host:port, or leave it out")
    return named or nearest()


def timeout_s() -> float:
    timeout: float = _given("timeout", DEFAULT_TIMEOUT_S)
    return timeout


def has_keys() -> bool:
    """Return whether `connect` uses keys. Raises ConfigurationError."""
    return client_keys(_given("curve_key"), _given("server_key")) is not None


def connect(brokers: Sequence[str] = ()) -> Client:
    """Return a client of these brokers, else of `addresses`; use it in a `with` block. Raises ConfigurationError."""
    from kingtask.client import Client

    keys = {name: _given(name) for name in ("curve_key", "server_key")}
    return Client(brokers or addresses(), timeout=timeout_s(), **keys)
