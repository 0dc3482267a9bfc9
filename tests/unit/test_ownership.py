"""Who else may change what a path means: components, links, sticky bits, groups; and each key that names a path."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kingtask import curve, ownership
from kingtask.config import Reload, exposed, load_broker, load_worker
from kingtask.errors import ConfigurationError
from kingtask.ownership import others_may_change

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")

BOB = 61_998
TASKS = 61_999


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root below /tmp, which is sticky; in it `safe`, and `open`, where bob may replace anything."""
    directory = Path(tempfile.mkdtemp(prefix="kingtask-owner-")).resolve()
    directory.chmod(0o755)
    for name in ("safe", "open"):
        (directory / name).mkdir(mode=0o755)
    (directory / "safe" / "file").touch(mode=0o644)
    os.chown(directory / "open", BOB, BOB)
    yield directory
    shutil.rmtree(directory)


def test_what_only_root_may_change(place: Path) -> None:
    assert others_may_change(place / "safe" / "file") == ""
    assert others_may_change("/usr/bin/env", depth=4) == ""
    (place / "link").symlink_to("safe/../safe")
    (place / "absolute").symlink_to(place / "link" / "file")
    assert others_may_change(place / "absolute") == ""


def link(place: Path) -> Path:
    (place / "open" / "link").symlink_to(place / "safe")
    return place / "open" / "link" / "file"


def link_to_a_link(place: Path) -> Path:
    link(place)
    (place / "first").symlink_to("open/link/file")
    return place / "first"


def directory_on_the_way(place: Path) -> Path:
    (place / "open" / "sub").mkdir()
    (place / "open" / "sub" / "file").touch()
    return place / "open" / "sub" / "file"


def back_out_of_it(place: Path) -> Path:
    (place / "open" / "sub").mkdir()
    return place / "open" / "sub" / ".." / ".." / "safe" / "file"


@pytest.mark.parametrize("through", [link, link_to_a_link, directory_on_the_way, back_out_of_it])
def test_a_directory_of_another_user_on_the_way(place: Path, through: Callable[[Path], Path]) -> None:
    path = through(place)
    assert others_may_change(path) == (
        f"{BOB} may write to {place}/open, and so change what {path} means; chown root {place}/open"
    )


def test_a_path_that_is_relative(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "safe")
    assert others_may_change("file") == ""
    (place / "safe").chmod(0o757)
    assert others_may_change("file").startswith(f"every user may write to {place}/safe, ")


def test_in_a_sticky_directory_the_owner_of_an_entry_may_replace_it(place: Path) -> None:
    (place / "safe").chmod(0o1777)
    (place / "safe" / "link").symlink_to("/usr/bin/env")
    assert others_may_change(place / "safe" / "file") == ""
    assert others_may_change(place / "safe" / "link") == ""
    assert others_may_change(place / "safe").startswith("every user may write to "), "anybody may add to it"
    os.chown(place / "safe" / "link", BOB, BOB, follow_symlinks=False)
    assert others_may_change(place / "safe" / "link") == (
        f"{BOB} may write to {place}/safe/link; chown -h root {place}/safe/link"
    )
    (place / "safe").chmod(0o1755)
    assert others_may_change(place / "safe" / "link") == "", "bob may not write there"


def test_a_group_counts_if_another_user_is_in_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members: dict[int, tuple[str, list[str]]] = {BOB: ("private", []), TASKS: ("team", ["nobody"])}
    users = [entry for entry in pwd.getpwall() if entry.pw_name in ("root", "nobody")]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((members[gid][0], "", gid, members[gid][1])))
    (place / "safe").chmod(0o775)
    os.chown(place / "safe", 0, BOB)
    assert others_may_change(place / "safe" / "file") == ""
    assert "the group private may write to " in others_may_change(place / "safe", gids={BOB})
    os.chown(place / "safe", 0, TASKS)
    assert others_may_change(place / "safe" / "file").startswith(f"the group team may write to {place}/safe, ")
    members.clear()  # no entry: any process may have it
    assert f"the group {TASKS} may write" in others_may_change(place / "safe" / "file")


def test_an_access_list_may_let_anybody_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_group", lambda gid: ("team", {0}))
    (place / "safe").chmod(0o775)
    assert others_may_change(place / "safe") == ""
    entries = (
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 7, BOB),
        (0x04, 5, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 5, 0xFFFFFFFF),
    )
    packed = b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + uid.to_bytes(4, "little") for tag, bits, uid in entries
    )
    try:
        os.setxattr(place / "safe", "system.posix_acl_access", (2).to_bytes(4, "little") + packed)
    except OSError:
        pytest.skip("this file system has no access lists")
    assert "may write to" in others_may_change(place / "safe")


def test_the_daemons_own_user_is_trusted_and_the_users_of_tasks_never_are(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(place / "safe", BOB, BOB)
    monkeypatch.setattr(os, "geteuid", lambda: BOB)
    assert others_may_change(place / "safe" / "file") == ""
    assert f"{BOB} may write" in others_may_change(place / "safe" / "file", uids={BOB})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(ownership, "PACKAGED_USER", "nobody")
    os.chown(place / "safe", pwd.getpwnam("nobody").pw_uid, 0)
    assert others_may_change(place / "safe" / "file") == "", "root checks what the packaged user's daemon will read"
    monkeypatch.setattr(os, "geteuid", lambda: BOB)
    assert "nobody may write" in others_may_change(place / "safe" / "file")


def test_entries_below_and_the_ways_of_links_among_them(place: Path) -> None:
    deep = place / "safe" / "1" / "2"
    deep.mkdir(parents=True)
    (deep / "task").touch()
    (place / "safe" / "nothing").symlink_to("/nowhere")
    (place / "safe" / "circle").symlink_to("circle")
    (place / "safe" / "away").symlink_to("/tmp")
    assert others_may_change(place / "safe", depth=4) == ""
    os.chown(deep / "task", BOB, BOB)
    assert f"{BOB} may write to {deep}/task" in others_may_change(place / "safe", depth=4)
    assert others_may_change(place / "safe", depth=2) == ""
    os.chown(deep / "task", 0, 0)
    link(place)
    (place / "safe" / "another").symlink_to(place / "open" / "link" / "file")
    assert f"{BOB} may write to {place}/open" in others_may_change(place / "safe", depth=4)


@pytest.mark.parametrize("name", ["nothing/at/all", "circle", "circle/x", "file/x"])
def test_a_path_that_leads_nowhere_is_left_to_its_reader(place: Path, name: str) -> None:
    (place / "safe" / "circle").symlink_to("circle")
    assert others_may_change(place / "safe" / name) == ""


# ── what the configuration does about it ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def keys(place: Path) -> Path:
    (place / "keys").mkdir()
    for name in ("broker", "worker"):
        curve.write_pair(place / "keys", name, replace=False)
    return place / "keys"


def through(place: Path, name: str) -> Path:
    """The directory or file by a link that bob may replace."""
    there = place / "open" / name
    if not there.is_symlink():
        there.symlink_to(place / name)
    return there


def written(place: Path, name: str, text: str) -> Path:
    path = place / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("guard", ["run_as", "keys", ""])
@pytest.mark.parametrize(
    "key", ["bin_path[0]", "private_dir", "launcher[0]", "redis_password_file", "redis_tls.ca", "worker.yaml"]
)
def test_a_worker_with_run_as_or_keys_refuses_it_and_one_without_warns(
    place: Path, keys: Path, key: str, guard: str
) -> None:
    (place / "bin").mkdir()
    (place / "dirs").mkdir()
    shutil.copy("/usr/bin/env", place / "launcher")
    (place / "secret").write_text("x")
    (place / "secret").chmod(0o600)
    (place / "ca").touch()
    names = {"bin_path[0]": "bin", "private_dir": "dirs", "launcher[0]": "launcher", "redis_password_file": "secret"}
    paths = {name: through(place, file) if name == key else place / file for name, file in names.items()}
    ca = through(place, "ca") if key == "redis_tls.ca" else place / "ca"
    text = (
        f"bin_path: {paths['bin_path[0]']}\nprivate_dir: {paths['private_dir']}\nlauncher: [{paths['launcher[0]']}]\n"
        f"redis_password_file: {paths['redis_password_file']}\nredis: rediss://127.0.0.1\nredis_tls: {{ca: {ca}}}\n"
    )
    if guard == "run_as":
        text += f"run_as: {{user: '{TASKS}', group: '{TASKS}'}}\n"
    elif guard == "keys":
        text += f"curve: {{secret_key_file: {keys}/worker.key_secret, server_key_file: {keys}/broker.key}}\n"
    path = written(place, "worker.yaml", text)
    if key == "worker.yaml":
        path = through(place, key)
    if guard:
        with pytest.raises(ConfigurationError) as caught:
            load_worker(path)
        line = str(caught.value)
    else:
        (line,) = exposed(path, load_worker(path))
    assert f": {BOB} may write to {place}/open, and so change what " in line
    assert key.removesuffix("[0]") in line


@pytest.mark.parametrize("guard", ["keys", ""])
@pytest.mark.parametrize("key", ["permissions", "addr[0]", "wakeup[0]", "broker.yaml"])
def test_a_broker_with_keys_refuses_it_and_one_without_warns(place: Path, keys: Path, key: str, guard: str) -> None:
    (place / "clients").mkdir()
    (place / "permissions.yaml").write_text("default: {}\n")
    permissions = through(place, "permissions.yaml") if key == "permissions" else place / "permissions.yaml"
    sockets = {name: place / ("open" if key == f"{name}[0]" else "safe") for name in ("addr", "wakeup")}
    text = (
        f"permissions: {permissions}\naddr: ipc://{sockets['addr']}/a\nwakeup: ipc://{sockets['wakeup']}/w\n"
        + guard.replace(
            "keys", f"curve: {{secret_key_file: {keys}/broker.key_secret, authorized_clients: {place}/clients}}\n"
        )
    )
    path = written(place, "broker.yaml", text)
    if key == "broker.yaml":
        path = through(place, "broker.yaml")
    if guard:
        with pytest.raises(ConfigurationError) as caught:
            load_broker(path)
        line = str(caught.value)
    else:
        (line,) = exposed(path, load_broker(path))
    assert f": {BOB} may write to {place}/open" in line
    assert key.removesuffix("[0]") in line


def test_keys_that_others_may_exchange_are_refused_at_each_place(place: Path, keys: Path) -> None:
    secret, public = keys / "worker.key_secret", keys / "broker.key"
    assert curve.read_client(secret, public).server == curve.read_public(public)
    for read in (
        lambda: curve.read_client(through(keys.parent, "keys") / secret.name, public),
        lambda: curve.read_client(secret, through(keys.parent, "keys") / public.name),
        lambda: curve.read_directory(through(keys.parent, "keys")),
    ):
        with pytest.raises(ConfigurationError, match=f"{BOB} may write to {place}/open, and so change what "):
            read()
    (keys / "worker.key").rename(place / "open" / "worker.key")
    (keys / "worker.key").symlink_to(place / "open" / "worker.key")
    with pytest.raises(ConfigurationError, match=f"{BOB} may write to {place}/open"):
        curve.read_directory(keys)


def test_a_reload_may_not_expose_a_worker_that_was_guarded_at_its_start(place: Path) -> None:
    """`run_as` stays until the restart, also if the new file does not have it."""
    guarded = load_worker(written(place, "a.yaml", f"bin_path: {place}/safe\nrun_as: {{user: nobody}}\n"))
    loose = load_worker(written(place, "b.yaml", f"bin_path: {through(place, 'safe')}\n"))
    assert [key for key, _ in loose.exposed()] == ["bin_path[0]"]
    applied: list[object] = []
    reload = Reload(guarded, lambda: loose, applied.append)
    reload.start(lambda: None, lambda: None)
    reload.ask()
    assert not applied
    assert "bin_path[0]: " in reload.problem
