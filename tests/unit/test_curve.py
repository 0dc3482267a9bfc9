"""Key files: what is made, what is taken and what is refused, and how it is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth

from kingtask import curve
from kingtask.errors import ConfigurationError


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return curve.write_pair(tmp_path, "alice", replace=False)


def test_a_pair_is_what_zmq_auth_reads_and_only_its_owner_may_read_the_secret(pair: tuple[Path, Path]):
    public, secret = pair
    assert (public.name, secret.name) == ("alice.key", "alice.key_secret")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert zmq.auth.load_certificate(public) == (curve.read_public(public), None)
    read = curve.read_pair(secret)
    assert zmq.auth.load_certificate(secret) == (read.public, read.secret)
    assert read.secret.decode() not in repr(read)
    assert sorted(file.name for file in public.parent.iterdir()) == ["alice.key", "alice.key_secret"]


@pytest.mark.parametrize("there", ["alice.key", "alice.key_secret"])
def test_a_pair_that_is_there_is_kept_unless_it_is_said(tmp_path: Path, pair: tuple[Path, Path], there: str):
    before = [file.read_bytes() for file in pair]
    (tmp_path / ({"alice.key", "alice.key_secret"} - {there}).pop()).unlink()
    with pytest.raises(ConfigurationError, match=f"{there} exists.*--replace"):
        curve.write_pair(tmp_path, "alice", replace=False)
    assert (tmp_path / there).read_bytes() in before
    curve.write_pair(tmp_path, "alice", replace=True)
    assert curve.read_pair(pair[1]).public == curve.read_public(pair[0])
    assert (tmp_path / there).read_bytes() not in before


@pytest.mark.parametrize("name", ["", "..", "../bob", "a/b", "-x", ".x", "a b", "x" * 65, "é"])
def test_a_name_is_one_file_name(tmp_path: Path, name: str):
    with pytest.raises(ConfigurationError, match="NAME: expected 1 to 64 letters"):
        curve.write_pair(tmp_path, name, replace=True)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"cannot write into .*nowhere: No such file"):
        curve.write_pair(tmp_path / "nowhere", "alice", replace=False)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o601])
def test_a_secret_that_others_may_read_is_refused(pair: tuple[Path, Path], mode: int):
    pair[1].chmod(mode)
    with pytest.raises(ConfigurationError, match=r"every user may read or change .*; chmod 600 "):
        curve.read_pair(pair[1])


def test_the_group_may_read_a_secret(pair: tuple[Path, Path]):
    pair[1].chmod(0o640)
    assert curve.read_pair(pair[1])


# Always the same: they are in the names of tests, which all processes that run these have to agree about.
SECRET, OTHER_SECRET = "0" * 40, "1" * 40
PUBLIC, OTHER = (zmq.curve_public(key.encode()).decode() for key in (SECRET, OTHER_SECRET))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("hello\n", "holds no key"),
        ("public-key\n", "holds no key"),
        (f'public-key = "{PUBLIC}"\n', "holds a public key only"),
        (f'public-key = "{PUBLIC}"\nsecret-key = "{SECRET[:-1]}"\n', "secret-key in .* 40 characters .*got 39"),
        (f'public-key = "{PUBLIC}"\nsecret-key = "{SECRET}x"\n', "secret-key in .* 40 characters .*got 41"),
        (f'public-key = "{PUBLIC[:-1]}é"\nsecret-key = "{SECRET}"\n', "public-key in .* 40 characters"),
        (f'public-key = "{PUBLIC[:-1]}~"\nsecret-key = "{SECRET}"\n', "public-key in .* 40 characters"),
        (f'public-key = "{PUBLIC}"\nsecret-key = ""\n', "secret-key in .* 40 characters .*got 0"),
        (f'public-key = "{OTHER}"\nsecret-key = "{SECRET}"\n', "are not a pair"),
        (f'public-key = "{PUBLIC}"\nsecret-key = "{PUBLIC}"\n', "are not a pair"),
        ("x" * 70_000, "longer than 65,536 bytes"),
    ],
)
def test_what_is_no_secret_key_file_is_refused_by_name(tmp_path: Path, text: str, told: str):
    path = tmp_path / "x.key_secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=told) as refused:
        curve.read_pair(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("end", ["\r\n", "\r", " \t\n", "\n\n"])
def test_how_a_line_ends_does_not_matter(tmp_path: Path, end: str):
    path = tmp_path / "x.key_secret"
    text = f'curve\n    public-key = "{PUBLIC}"\n    secret-key = "{SECRET}"'
    path.write_bytes((text.replace("\n", "\r\n" if "\r" in end else "\n") + end).encode())
    path.chmod(0o600)
    assert curve.read_pair(path) == curve.Pair(public=PUBLIC.encode(), secret=SECRET.encode())


@pytest.mark.parametrize("kind", ["directory", "missing", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / "x.key_secret"
    if kind == "directory":
        path.mkdir(mode=0o700)
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    with pytest.raises(ConfigurationError, match=r"not a regular file|No such file"):
        curve.read_pair(path)


def test_a_secret_is_not_taken_for_a_public_key(pair: tuple[Path, Path]):
    with pytest.raises(ConfigurationError, match="holds a secret key"):
        curve.read_public(pair[1])


def test_a_directory_says_who_is_let_in(tmp_path: Path):
    for name in ("alice", "bob"):
        curve.write_pair(tmp_path, name, replace=False)
    (tmp_path / "README").write_text("not a key")
    expected = {curve.read_public(tmp_path / f"{name}.key").decode(): name for name in ("alice", "bob")}
    assert curve.read_directory(tmp_path) == expected


def test_who_is_let_in_is_not_for_everybody_to_decide(tmp_path: Path, pair: tuple[Path, Path]):
    pair[0].chmod(0o646)
    with pytest.raises(
        ConfigurationError, match=r"every user may write to .*/alice.key, and so change .*; chmod o-w .*/alice.key"
    ):
        curve.read_directory(tmp_path)
    pair[0].chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"every user may write to .*; chmod o-w"):
        curve.read_directory(tmp_path)
    tmp_path.chmod(0o755)
    assert list(curve.read_directory(tmp_path).values()) == ["alice"]


def test_a_directory_with_something_wrong_in_it_is_refused(tmp_path: Path, pair: tuple[Path, Path]):
    (tmp_path / "bob.key").write_bytes(pair[0].read_bytes())
    with pytest.raises(ConfigurationError, match=r"bob.key holds the same key as alice.key"):
        curve.read_directory(tmp_path)
    (tmp_path / "bob.key").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"bob.key is empty"):
        curve.read_directory(tmp_path)
    (tmp_path / "bob.key").rename(tmp_path / "b ob.key")
    with pytest.raises(ConfigurationError, match=r"b ob.key: the part before .key names a client"):
        curve.read_directory(tmp_path)
    (tmp_path / "b ob.key").rename(tmp_path / "anonymous.key")
    with pytest.raises(ConfigurationError, match=r"anonymous.key: .* but not anonymous"):
        curve.read_directory(tmp_path)
    with pytest.raises(ConfigurationError, match=r"NAME: .* but not anonymous"):
        curve.write_pair(tmp_path, "anonymous", replace=False)
    with pytest.raises(ConfigurationError, match="cannot read the directory"):
        curve.read_directory(tmp_path / "nowhere")
