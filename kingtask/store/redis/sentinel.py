"""Query sentinels for the primary. Blocks (redis-py), so the daemons call it in threads.

Every sentinel is asked, and the answer with the latest failover (`config-epoch`) wins: a sentinel that was cut off
still names the former primary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from kingtask.errors import StoreError
from kingtask.store.redis.address import RedisAddress


class Named(NamedTuple):
    """One sentinel's answer about the service."""

    epoch: int
    """Number of the failover that made this server the primary."""
    host: str
    port: int
    replicas: int
    """Known replicas, reachable or not."""


class Asker:
    """A client for each sentinel of `address`; one thread at a time may use each."""

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        assert address.sentinels is not None
        self._address = address
        self._service = address.sentinels.service
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            address.sentinels.hosts,
            sentinel_kwargs={
                **options_of(address, timeout_s),
                "username": address.sentinels.user,
                "password": address.sentinels.password,
                "decode_responses": True,
            },
        )

    @property
    def clients(self) -> list[Any]:
        """The clients, in the order of the address."""
        return list(self._sentinel.sentinels)

    def ask(self, client: Any) -> Named | StoreError:
        """Ask one of the clients; blocks for at most a few timeouts."""
        try:
            state = client.sentinel_master(self._service)
            # This command names the new primary while the replicas are still being switched.
            host, port = client.sentinel_get_master_addr_by_name(self._service)
            return Named(state["config-epoch"], host, int(port), state["num-slaves"])
        except (redis.RedisError, OSError, TypeError, ValueError, KeyError) as error:
            kind = "auth" if isinstance(error, redis.AuthenticationError) else "away"
            return StoreError(kind, str(error) or "no answer")

    def believe(self, answers: Iterable[Named | StoreError]) -> Named:
        """Return the answer with the latest failover. Raises StoreError without an answer."""
        answers = list(answers)
        named = [answer for answer in answers if isinstance(answer, Named)]
        if not named:
            why = "; ".join(sorted({str(answer) for answer in answers})) or "no answer"
            raise StoreError("away", f"no sentinel of {self._address} names a primary ({why})")
        return max(named)

    def address_of(self, named: Named) -> RedisAddress:
        """Return the address of the named server."""
        return replace(self._address, host=named.host, port=named.port, sentinels=None)


def options_of(address: RedisAddress, timeout_s: float) -> dict[str, Any]:
    """Return the timeouts and the settings of `redis_tls` under redis-py's names."""
    retry, tls = Retry(NoBackoff(), 0), address.tls
    options = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": retry, "protocol": 2}
    if tls is not None:
        options |= {"ssl": True, "ssl_ca_certs": tls.ca, "ssl_certfile": tls.cert, "ssl_keyfile": tls.key}
    return options
