"""Hears what the functions publish."""

from __future__ import annotations

from tests.store.syncstore import SyncStore

CHANNELS = ("due", "ready", "cancel", "claimed", "ended")
ANSWER_S = 10.0


class ChannelListener:
    """Hears a namespace's channels."""

    def __init__(self, store: SyncStore) -> None:
        self._store = store
        self._pubsub = store.client.pubsub()
        self._pubsub.subscribe(*(store.keys.channel(what) for what in CHANNELS))
        for _ in CHANNELS:
            self._next()

    def heard(self) -> list[tuple[str, str]]:
        """What was published since the last call, in order."""
        mark = "that is all"
        self._store.client.publish(self._store.keys.channel("ended"), mark)
        heard: list[tuple[str, str]] = []
        while True:
            message = self._next()
            if message["data"] == mark.encode():
                return heard
            heard.append((message["channel"].decode().rpartition(":")[2], message["data"].decode()))

    def _next(self) -> dict[str, bytes]:
        message: dict[str, bytes] | None = self._pubsub.get_message(timeout=ANSWER_S)
        assert message is not None, "nothing was published"
        return message

    def close(self) -> None:
        self._pubsub.close()
