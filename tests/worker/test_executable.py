"""Which file a name means, and every way in which it means none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kingtask.worker.exec.executable import Unusable, find, leads_out
from kingtask.worker.exec.spawn import spawn


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def executable(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def refused(name: str, *directories: Path) -> Unusable:
    with pytest.raises(Unusable) as caught:
        find(name, [str(directory) for directory in directories])
    return caught.value


def test_a_file_in_the_directory_and_below_it(root: Path) -> None:
    for name in ("example", "v1.2_x-y", "reports/daily", "a/b/c/d"):
        path = executable(root / name)
        assert find(name, [str(root)]) == str(path)


@pytest.mark.parametrize(
    "name",
    [
        *("", "../x", "/bin/sh", "a/../../x", "a//b", "./x", ".hidden", "x/", "-x", "~", "a\0b", "a\nb", "a b"),
        *("x\n", "ä", "x" * 65, "a/.b", "..", "a/b/c/d/e"),
    ],
)
def test_what_is_no_name_is_refused(root: Path, name: str) -> None:
    executable(root.parent / "x")
    error = refused(name, root)
    assert error.reason == "not_executable"
    assert "is not the name of an executable" in str(error)


def test_the_first_directory_that_has_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    executable(first / "both")
    executable(second / "both")
    executable(second / "one")
    directories = [str(first), str(second)]
    assert find("both", directories) == str(first / "both")
    assert find("one", directories) == str(second / "one")
    assert find("one", [str(tmp_path / "gone"), *directories]) == str(second / "one")
    (first / "one").write_text("")
    assert refused("one", first, second).reason == "not_executable"  # an unusable one does not give way silently


def test_missing_names_where_it_was_looked_for(tmp_path: Path, root: Path) -> None:
    error = refused("example", root, tmp_path / "gone")
    assert error.reason == "missing"
    assert str(error) == f"no example in bin_path: {root}, {tmp_path}/gone (no such directory)"
    executable(root / "file")
    assert refused("file/below", root).reason == "missing"


def test_a_directory_a_fifo_and_a_file_without_the_bit(root: Path) -> None:
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo", 0o755)
    executable(root / "plain", 0o644)
    executable(root / "setuid", 0o4755)
    executable(root / "setgid", 0o2755)
    for name, why in (
        ("directory", "is a directory"),
        ("fifo", "not a regular file"),
        ("plain", "chmod +x"),
        ("setuid", "another user"),
        ("setgid", "another user"),
    ):
        error = refused(name, root)
        assert error.reason == "not_executable"
        assert why in str(error)


def test_links_within_the_directories_are_followed(tmp_path: Path, root: Path) -> None:
    executable(root / "tool-1.2")
    (root / "tool").symlink_to("tool-1.2")
    assert find("tool", [str(root)]) == str(root / "tool")  # by its own name: it may behave by it
    other = tmp_path / "other"
    executable(other / "elsewhere")
    (root / "there").symlink_to(other / "elsewhere")
    assert find("there", [str(root), str(other)]) == str(root / "there")
    (root / "sub").symlink_to(other)
    assert find("sub/elsewhere", [str(root), str(other)]) == str(root / "sub" / "elsewhere")


@pytest.mark.parametrize("target", ["/bin/sh", "../outside", "../bin-beside/x", "../../bin/../outside"])
def test_links_that_lead_out_are_refused(tmp_path: Path, root: Path, target: str) -> None:
    executable(tmp_path / "outside")
    executable(tmp_path / "bin-beside" / "x")  # shares the directory's name as a prefix
    (root / "link").symlink_to(target)
    error = refused("link", root)
    assert (error.reason, "leads out of bin_path" in str(error) or "link to nothing" in str(error)) in (
        ("not_executable", True),
        ("missing", True),
    )
    (root / "sub").symlink_to("..")
    assert refused("sub/outside", root).reason == "not_executable"


def test_what_is_exchanged_for_something_outside_is_noticed(tmp_path: Path, root: Path) -> None:
    executable(tmp_path / "outside")
    path = executable(root / "sub" / "tool")
    found = find("sub/tool", [str(root)])
    assert not leads_out(found, "sub/tool", [str(root)])
    path.unlink()
    assert not leads_out(found, "sub/tool", [str(root)])
    path.symlink_to(executable(root / "other"))
    assert not leads_out(found, "sub/tool", [str(root)])
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    assert leads_out(found, "sub/tool", [str(root)])


def test_dangling_and_circular_links(root: Path) -> None:
    (root / "dangling").symlink_to("nothing")
    (root / "circle").symlink_to("circle")
    assert refused("dangling", root).reason == "missing"
    assert refused("circle", root).reason == "not_executable"


def test_the_directory_may_be_a_link_that_is_turned_over(tmp_path: Path) -> None:
    for release in ("1", "2"):
        executable(tmp_path / release / "example")
    current = tmp_path / "current"
    current.symlink_to("1")
    assert find("example", [str(current)]) == str(tmp_path / "1" / "example")
    current.unlink()
    current.symlink_to("2")
    assert find("example", [str(current)]) == str(tmp_path / "2" / "example")


def test_the_directory_that_a_link_means_may_have_a_name_of_any_bytes(tmp_path: Path, root: Path) -> None:
    named = tmp_path / os.fsdecode(b"r\xff")
    path = executable(named / "example")
    (tmp_path / "current").symlink_to(named)
    found = find("example", [str(tmp_path / "current")])
    assert found == str(path)
    with Path(os.devnull).open("rb") as null:
        spawned = spawn(found, [], {}, null.fileno())
    assert spawned.popen.wait() == 0
    spawned.close()
    (root / "link").symlink_to(path)
    assert "leads out of bin_path" in str(refused("link", root))
