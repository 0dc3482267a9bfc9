"""CURVE keys in files, in the certificate format of ZeroMQ, and where clients find them.

A pair is two files: `NAME.key_secret`, which holds both keys and stays where it is used, and `NAME.key` with the public
one alone, which goes to the other side. A key is 32 bytes, written as 40 characters (Z85, ZeroMQ's RFC 32).

Clients without keys and the check of a configuration import this module too: zmq and the slower modules of the standard
library are imported inside the functions.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from kingtask.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    import zmq

SECRET_SUFFIX = ".key_secret"  # noqa: S105 - of a file name
PUBLIC_SUFFIX = ".key"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")
"""The name of a pair, and so of a client."""
ANONYMOUS = "anonymous"
"""The name of every client without a key, and so of none with a key."""
NAMES = "1 to 64 letters, digits, dots, dashes and underscores, not beginning with a dot or dash"
_EXPECTED = f"{NAMES}; but not {ANONYMOUS}, which stands for clients without a key"
KEY_LENGTH = 40
MAX_BYTES = 65_536

CURVE_KEY = "KINGTASK_CURVE_KEY"
SERVER_KEY = "KINGTASK_SERVER_KEY"

KeyFile = str | os.PathLike[str]


class Pair(NamedTuple):
    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Pair(public={self.public!r})"


class ClientKeys(NamedTuple):
    """The keys of a client or worker: its own pair, and the public key of the brokers that it trusts."""

    own: Pair
    server: bytes

    def put_on(self, socket: zmq.Socket[bytes]) -> None:
        """Set the keys; to be called before the socket connects."""
        import zmq

        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server)


def read_client(secret_key_file: KeyFile, server_key_file: KeyFile) -> ClientKeys:
    """Read both files. Raises ConfigurationError that names the file and the remedy."""
    from pathlib import Path

    return ClientKeys(own=read_pair(Path(secret_key_file)), server=read_public(Path(server_key_file)))


def client_keys(curve_key: KeyFile | None, server_key: KeyFile | None) -> ClientKeys | None:
    """Read the two key files of a client, by default those that the environment names; None if there are none.

    "" names no file. Raises ConfigurationError naming the wrong or missing file.
    """
    own = os.environ.get(CURVE_KEY) if curve_key is None else curve_key
    server = os.environ.get(SERVER_KEY) if server_key is None else server_key
    if not own and not server:
        return None
    if not own or not server:
        missing, there = ("own secret", "the broker's public") if not own else ("broker's public", "its secret")
        raise ConfigurationError(
            f"keys: this client has {there} key, but not the {missing} one; name both"
            f" (curve_key and server_key, --curve-key and --server-key, or {CURVE_KEY} and {SERVER_KEY})"
        )
    return read_client(own, server)


def read_pair(path: Path) -> Pair:
    """Read a secret key file, which only its owner and group may read. Raises ConfigurationError."""
    import zmq

    mode = _look(path)
    public, secret = _keys(path)
    if secret is None:
        raise ConfigurationError(f"{path} holds a public key only; name the pair's other file, *{SECRET_SUFFIX}")
    if mode & stat.S_IRWXO:
        raise ConfigurationError(f"every user may read or change {path}, a secret key; chmod 600 {path}")
    if zmq.curve_public(secret) != public:
        raise ConfigurationError(f"the keys in {path} are not a pair; make a new one with kingtask keygen")
    _refuse_exposed(path)
    return Pair(public=public, secret=secret)


def read_public(path: Path, *, checked: bool = False) -> bytes:
    """Read a public key file; `checked`: nobody else may change it. Raises ConfigurationError."""
    _look(path)
    public, secret = _keys(path)
    if secret is not None:
        raise ConfigurationError(
            f"{path} holds a secret key, which is its owner's alone; name the pair's public file, *{PUBLIC_SUFFIX}"
        )
    if not checked:
        _refuse_exposed(path)
    return public


def read_directory(path: Path) -> dict[str, str]:
    """Read every `NAME.key` in a directory; return a dict of public key to name. Raises ConfigurationError."""
    try:
        files = sorted(file for file in path.iterdir() if file.suffix == PUBLIC_SUFFIX)
    except OSError as error:
        raise ConfigurationError(f"cannot read the directory {path}: {error.strerror}") from None
    _refuse_exposed(path, depth=1)
    found: dict[str, str] = {}
    for file in files:
        if not NAME.match(file.stem) or file.stem == ANONYMOUS:
            raise ConfigurationError(f"{file}: the part before {PUBLIC_SUFFIX} names a client: expected {_EXPECTED}")
        other = found.setdefault(read_public(file, checked=True).decode(), file.stem)
        if other != file.stem:
            raise ConfigurationError(f"{file} holds the same key as {other}{PUBLIC_SUFFIX}: one client, one key")
    return found


def write_pair(directory: Path, name: str, *, replace: bool) -> tuple[Path, Path]:
    """Make a pair; return the public and the secret file. Raises ConfigurationError, e.g. if one of them exists."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import zmq.auth

    if not NAME.match(name) or name == ANONYMOUS:
        raise ConfigurationError(f"NAME: expected {_EXPECTED}, got {name!r}")
    public, secret = directory / f"{name}{PUBLIC_SUFFIX}", directory / f"{name}{SECRET_SUFFIX}"
    try:
        with TemporaryDirectory(prefix=".keygen-", dir=directory) as private:  # mode 0700
            made = [Path(file) for file in zmq.auth.create_certificates(private, name)]
            made[0].chmod(0o644)
            made[1].chmod(0o600)
            for file in made:
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            # The secret key first: the public key is useless without it. Without `replace` an existing file stays.
            for source, target in ((made[1], secret), (made[0], public)):
                if replace:
                    source.replace(target)
                else:
                    target.hardlink_to(source)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{error.filename2 or public} exists, and its owner would be locked out;"
            " choose another name, or pass --replace"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot write into {directory}: {error.strerror}") from None
    return public, secret


def _look(path: Path) -> int:
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path} is not a regular file; name a key file, as kingtask keygen writes them")
    if not status.st_size:
        raise ConfigurationError(f"{path} is empty; expected a key file, as kingtask keygen writes them")
    if status.st_size > MAX_BYTES:
        raise ConfigurationError(f"{path} is longer than {MAX_BYTES:,} bytes; is it a key file?")
    return status.st_mode


def _refuse_exposed(path: Path, depth: int = 0) -> None:
    from kingtask.ownership import others_may_change

    if found := others_may_change(path, depth=depth):
        raise ConfigurationError(found)


def _keys(path: Path) -> tuple[bytes, bytes | None]:
    import zmq.auth

    try:
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, IndexError):  # no `public-key =` in it
        raise ConfigurationError(f"{path} holds no key; expected a file as kingtask keygen writes them") from None
    for name, key in (("public-key", public), ("secret-key", secret)):
        if key is not None and not _is_key(key):
            raise ConfigurationError(
                f"{name} in {path}: expected {KEY_LENGTH} characters (Z85), got {len(key)}; copy the file again"
            )
    return public, secret


def _is_key(key: bytes) -> bool:
    from zmq.utils import z85

    if len(key) != KEY_LENGTH:
        return False
    try:
        return bool(z85.encode(z85.decode(key)) == key)
    except Exception:  # noqa: BLE001  (releases of pyzmq raise different errors for a wrong character)
        return False
