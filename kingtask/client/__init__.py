"""Clients for Python: `Client` blocks, `AsyncClient` is for asyncio; both are shells of one core, with one surface."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kingtask.client.aio import AsyncClient as AsyncClient
    from kingtask.client.blocking import Client as Client

__all__ = ["AsyncClient", "Client"]

_HOMES = {"AsyncClient": "aio", "Client": "blocking"}


def __getattr__(name: str) -> object:
    """Import a client at its first use: importing asyncio takes longer than all the rest."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
