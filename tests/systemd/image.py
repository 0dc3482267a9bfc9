"""A Debian to boot: made by debootstrap from the mirror of this machine's apt, kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

PACKAGES = "systemd systemd-sysv dbus python3 python3-venv redis-server nodejs default-jre-headless".split()
"""Of them, what the installation asks for, and languages: the container has no network."""
TOOLS = ("systemd-nspawn", "debootstrap", "nsenter")


class Unable(Exception):
    """A container cannot be booted here; says what is missing."""


def check() -> None:
    """Raises Unable."""
    if os.geteuid() != 0:
        raise Unable("only root may boot a container")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise Unable(f"{tool} is not installed (apt-get install systemd-container debootstrap)")
    if platform.freedesktop_os_release()["ID"] != "debian":
        raise Unable("this is not Debian, whose apt names a mirror to bootstrap from")


def image() -> Path:
    """The root directory of a fresh Debian of this machine's release, never to be written to. Raises Unable."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kingtask-tests"
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(" ".join((release, *PACKAGES)).encode()).hexdigest()[:8]
    root = cache / f"{release}-{key}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it
        if not root.exists():
            _bootstrap(release, root)
    return root


def _bootstrap(release: str, root: Path) -> None:
    mirror = _mirror(release)
    print(f"bootstrapping {release} from {mirror} into {root} (some minutes, once)", flush=True)
    making = root.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, str(making), mirror]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unable(f"debootstrap failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    (making / "etc" / "hostname").write_text("kingtask-test\n")
    making.rename(root)


def _mirror(release: str) -> str:
    """Of Debian itself, as apt's own sources name it."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for line in listed.splitlines():
        uri, codename, component = line.split(" ")
        if codename == release and component == "main":
            return uri
    raise Unable(f"apt's sources name no mirror of {release}")
