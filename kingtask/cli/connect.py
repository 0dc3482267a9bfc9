"""How the commands find a broker: the options they share, and the client made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kingtask.cli.param_types import SECONDS
from kingtask.endpoint import DEFAULT_PORT
from kingtask.errors import ConfigurationError

if TYPE_CHECKING:
    from kingtask.client import Client

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


DEFAULT_TIMEOUT_S = 10.0


def _split(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    addresses = tuple(part.strip() for value in values for part in value.split(",") if part.strip())
    if addresses:
        return addresses
    if values:
        raise ConfigurationError("--broker, or KINGTASK_BROKER, names no address: give host:port, or leave it out")
    from kingtask.endpoint import nearest

    return nearest()


def _remember(context: click.Context, option: click.Parameter, value: str | None) -> None:
    context.meta[f"{__name__}.{option.name}"] = value


def broker_option(command: Decorated) -> Decorated:
    """Add --broker, passed as `broker`: a tuple of addresses; and the two keys, which `connect` finds by itself."""
    for name, variable, what in (
        ("--server-key", "KINGTASK_SERVER_KEY", "The brokers' public key"),
        ("--curve-key", "KINGTASK_CURVE_KEY", "This client's secret key"),
    ):
        command = click.option(
            name,
            metavar="FILE",
            expose_value=False,
            callback=_remember,
            help=f"{what}, if they ask for keys. [default: {variable}]",
        )(command)
    return click.option(
        "--broker",
        metavar="ADDRESS",
        multiple=True,
        envvar="KINGTASK_BROKER",
        callback=_split,
        help="Broker's address (host:port, tcp://…, ipc://…); more with commas or again."
        f" [default: ipc:///run/kingtask/broker.sock if /run/kingtask exists, else 127.0.0.1:{DEFAULT_PORT}]",
    )(command)


def timeout_option(command: Decorated) -> Decorated:
    """Add --timeout, passed as `timeout`: seconds for a broker's answer."""
    return click.option(
        "--timeout",
        metavar="S",
        type=SECONDS,
        default=DEFAULT_TIMEOUT_S,
        help=f"How long a broker may take to answer. [default: {DEFAULT_TIMEOUT_S:.0f} s]",
    )(command)


def json_option(command: Decorated) -> Decorated:
    """Add --json, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Lines of JSON.")(command)


def connect(broker: Sequence[str], timeout: float = DEFAULT_TIMEOUT_S) -> Client:
    """A client of these brokers; use it in a `with` block."""
    from kingtask.client import Client

    context = click.get_current_context(silent=True)
    given = context.meta if context is not None else {}
    own, server = (given.get(f"{__name__}.{name}") for name in ("curve_key", "server_key"))
    return Client(list(broker), timeout=timeout, curve_key=own, server_key=server)
