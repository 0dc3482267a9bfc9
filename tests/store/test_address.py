"""The `redis:` setting: every form it takes, every way to get it wrong, and no password in any text."""

from __future__ import annotations

from typing import Any

import pytest

from kingtask.errors import ConfigurationError
from kingtask.store.redis.address import RedisAddress, RedisTLS, Sentinels, parse_address

TLS = RedisTLS(ca="/etc/ca.pem")


def behind(*hosts: tuple[str, int], **fields: Any) -> RedisAddress:
    return RedisAddress(host="", port=0, sentinels=Sentinels(hosts=hosts, service="mymaster"), **fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:6379", RedisAddress()),
        ("127.0.0.1:6379/2", RedisAddress(db=2)),
        ("127.0.0.1", RedisAddress()),
        ("redis.example:7000", RedisAddress(host="redis.example", port=7000)),
        ("redis.example/15", RedisAddress(host="redis.example", db=15)),
        ("[::1]:6380/1", RedisAddress(host="::1", port=6380, db=1)),
        ("redis://h", RedisAddress(host="h")),
        ("redis://h:1/", RedisAddress(host="h", port=1)),
        ("redis://h:65535/3", RedisAddress(host="h", port=65535, db=3)),
        ("redis://h?db=4", RedisAddress(host="h", db=4)),
        ("redis://:pw@h", RedisAddress(host="h", password="pw")),
        ("redis://me:pw@h:1/2", RedisAddress(host="h", port=1, db=2, user="me", password="pw")),
        ("redis://me@h", RedisAddress(host="h", user="me")),
        ("me:pw@h:1/2", RedisAddress(host="h", port=1, db=2, user="me", password="pw")),
        ("redis://m%40e:p%3A%2F%23w@h", RedisAddress(host="h", user="m@e", password="p:/#w")),
        ("redis://:p@w@h", RedisAddress(host="h", password="p@w")),
        ("rediss://h", RedisAddress(host="h", tls=RedisTLS())),
        ("rediss://me:pw@h:1/2", RedisAddress(host="h", port=1, db=2, user="me", password="pw", tls=RedisTLS())),
        ("unix:///run/redis.sock", RedisAddress(host="", path="/run/redis.sock")),
        ("unix:///run/redis.sock?db=3", RedisAddress(host="", path="/run/redis.sock", db=3)),
        ("unix://me:pw@/run/redis.sock", RedisAddress(host="", path="/run/redis.sock", user="me", password="pw")),
        ("unix:///run/a%20b.sock", RedisAddress(host="", path="/run/a b.sock")),
        ("redis+sentinel://h/mymaster", behind(("h", 26379))),
        ("redis+sentinel://h:1,[::1],i:2/mymaster/3", behind(("h", 1), ("::1", 26379), ("i", 2), db=3)),
        ("redis+sentinel://me:p%40w@h/mymaster/0", behind(("h", 26379), user="me", password="p@w")),
    ],
)
def test_every_form(text: str, expected: RedisAddress) -> None:
    assert parse_address(text) == expected


def test_the_password_file_wins_over_the_url() -> None:
    assert parse_address("redis://me:old@h", password="new").password == "new"
    assert parse_address("redis://h", password="new").password == "new"


def test_tls_is_by_scheme_or_by_setting() -> None:
    assert parse_address("rediss://h", tls=TLS).tls == TLS
    assert parse_address("h:1", tls=TLS).tls == TLS
    assert parse_address("h:1").tls is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "host"),
        (":6379", "host"),
        ("redis://", "host"),
        ("redis:///0", "host"),
        ("/run/redis.sock", "host"),
        ("h:0", "port"),
        ("h:65536", "port"),
        ("h:-1", "port"),
        ("h:port", "port"),
        ("h: 6379", "port"),
        ("[::1:6379", "host"),
        ("h:1/x", "database"),
        ("h:1/-1", "database"),
        ("h:1/1/2", "database"),
        ("h:1/٣", "database"),
        ("h:1/12345", "database"),
        ("redis://h?db=x", "database"),
        ("redis://h?timeout=3", "parameter"),
        ("redis://h/0#x", "#"),
        ("http://h", "scheme"),
        ("redis+sentinel://", "host"),
        ("redis+sentinel://h", "service"),
        ("redis+sentinel://h/", "service"),
        ("redis+sentinel://h,/m", "host"),
        ("redis+sentinel://h:0/m", "port"),
        ("redis+sentinel://h/m/x", "database"),
        ("redis+sentinel://h/m/1/2", "database"),
        ("redis+sentinel://h/m?db=1", "database"),
        ("sentinel://h/m", "scheme"),
        ("unix://", "path"),
        ("unix:///", "path"),
        ("unix://run/redis.sock", "path"),
    ],
)
def test_every_complaint_says_what_is_wrong_and_what_is_expected(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address(text)
    message = str(caught.value)
    assert message.startswith("redis: ")
    assert why in message.partition(";")[0]
    assert "host:port/db" in message


def test_the_sentinels_have_their_own_login_and_share_the_tls_files() -> None:
    address = parse_address(
        "redis+sentinel://me:pw@h/m", password="new", tls=TLS, sentinel_user="s", sentinel_password="spw"
    )
    assert (address.user, address.password, address.tls) == ("me", "new", TLS)
    assert address.sentinels == Sentinels(hosts=(("h", 26379),), service="m", user="s", password="spw")
    assert "spw" not in repr(address)


def test_tls_does_not_go_with_a_unix_socket() -> None:
    with pytest.raises(ConfigurationError, match="redis_tls"):
        parse_address("unix:///run/redis.sock", tls=TLS)


@pytest.mark.parametrize(
    "text",
    [
        "redis://:{}@h",
        "redis://me:{}@h:1/2",
        "rediss://me:{}@h",
        "unix://:{}@/run/redis.sock",
        "redis://:{}@h:port",
        "redis://:{}@h/x",
        "redis://:{}@h?x=1",
        "redis://:{}@h:99999",
        "redis://:{}",
        "redis://me:{}",
        "redis://:12/{}@h",
        "redis://:12?{}@h",
        "redis://:12#{}@h",
        "redis://:12?db={}@h",
        "redis://:{}@[::1",
        "redis://:{}@h\u2100",
        "http://:{}@h",
        "redis+sentinel://:{}@h/m",
        "redis+sentinel://me:{}@h:port/m",
        "redis+sentinel://me:12/{}@h/m",
        "redis+sentinel://me:1/2/{}@h/m",
        "{}@h:port",
        "h/{}",
    ],
)
def test_no_text_holds_a_password(text: str) -> None:
    secret = "hunter2"
    try:
        address = parse_address(text.replace("{}", secret))
    except ConfigurationError as error:
        assert secret not in str(error)
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__, "a traceback would show it"
    else:
        assert secret not in f"{address} {address!r}"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (RedisAddress(), "redis://127.0.0.1:6379/0"),
        (RedisAddress(host="::1", db=2, user="me", password="pw"), "redis://[::1]:6379/2"),
        (RedisAddress(host="h", tls=TLS), "rediss://h:6379/0"),
        (behind(("h", 1), ("::1", 2), db=3, password="pw"), "redis+sentinel://h:1,[::1]:2/mymaster/3"),
        (RedisAddress(host="", path="/run/r.sock", db=1, password="pw"), "unix:///run/r.sock?db=1"),
    ],
)
def test_as_logs_show_it(address: RedisAddress, text: str) -> None:
    assert str(address) == text
