"""Machines: network namespaces on a switch whose ports can be moved to its other side.

Machine n has 10.77.0.n on the switch, which nobody outside can reach, and an address on a line of its own to the rig,
which stays whatever happens to the switch.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from tests.faults.layout import Skipped


class Machines:
    def __init__(self, label: str, count: int) -> None:
        self._hub = f"{label}h"
        self._names = [f"{label}m{number}" for number in range(1, count + 1)]
        self._line = os.getpid() % 200 + 20
        """So that two rigs on one machine do not meet."""

    def address(self, machine: int) -> str:
        """Where other machines find it."""
        return f"10.77.0.{machine}"

    def near(self, machine: int) -> str:
        """Where the rig finds it."""
        return f"10.{self._line}.{machine}.2"

    def prefix(self, machine: int) -> list[str]:
        """In front of a command that is to run on it."""
        return ["nsenter", f"--net=/run/netns/{self._names[machine - 1]}", "--"]

    def open(self) -> None:
        """Raises Skipped."""
        commands = [f"netns add {self._hub}"]
        commands += [f"-n {self._hub} link {line}" for line in ("add side0 type bridge", "add side1 type bridge")]
        commands += [f"-n {self._hub} link set side{side} up" for side in (0, 1)]
        for number, name in enumerate(self._names, 1):
            commands += [
                f"netns add {name}",
                f"-n {self._hub} link add port{number} type veth peer name switch netns {name}",
                f"-n {self._hub} link set port{number} master side0 up",
                f"link add {name} type veth peer name rig netns {name}",
                f"addr add 10.{self._line}.{number}.1/30 dev {name}",
                f"link set {name} up",
                f"-n {name} addr add {self.address(number)}/24 dev switch",
                f"-n {name} addr add {self.near(number)}/30 dev rig",
                *(f"-n {name} link set {link} up" for link in ("lo", "switch", "rig")),
            ]
        for command in commands:
            try:
                done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
            except FileNotFoundError:
                raise Skipped("ip (iproute2) is not installed") from None
            if done.returncode:
                raise Skipped(f"no network namespaces here: ip {command}: {done.stderr.strip()}")

    def move(self, machine: int, side: int) -> None:
        """Plug it into this side of the switch; machines on different sides do not hear each other."""
        port = f"port{machine}"
        subprocess.run(["ip", "-n", self._hub, "link", "set", port, "master", f"side{side}"], check=True)

    def deafen(self, one: int, other: int) -> None:
        """These two do not hear each other: each looks for the other at an address of the switch that nobody has."""
        for here, there in ((one, other), (other, one)):
            self._neighbour(here, f"replace {self.address(there)} lladdr 02:00:00:00:00:01 nud permanent")

    def mend(self, one: int, other: int) -> None:
        """Idempotent."""
        for here, there in ((one, other), (other, one)):
            self._neighbour(here, f"replace {self.address(there)} nud none")

    def _neighbour(self, machine: int, command: str) -> None:
        line = ["ip", "-n", self._names[machine - 1], "neigh", *command.split(), "dev", "switch"]
        subprocess.run(line, check=True, capture_output=True)

    def close(self) -> None:
        """The lines go with the namespaces. Idempotent."""
        for name in [*self._names, self._hub]:
            with suppress(FileNotFoundError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
