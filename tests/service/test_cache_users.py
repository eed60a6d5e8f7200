"""Each client of the cache server is a user that can do what that client does, and nothing else."""

from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.exceptions

from components.cache import role_password
from tests.service.conftest import PASSWORD

DONE: dict[str, list[tuple[Any, ...]]] = {
    "model-server": [("SET", "answer:1:a", "x", "EX", 60), ("GET", "answer:1:a")],
    "api-server": [
        *(("XADD", "gateways:1", "*", "w", "x"), ("XRANGE", "gateways:1", "-", "+"), ("XREAD", "STREAMS", "gateways:1", "0")),
        *(("SET", "embedding:1:a", "x", "EX", 60), ("MGET", "embedding:1:a", "embedding:1:b")),
    ],
    "metrics-exporter": [("INFO",)],
}
"""What each does."""
REFUSED: list[tuple[Any, ...]] = [
    *(
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("BGSAVE",),
        ("SHUTDOWN", "NOSAVE"),
    ),
    *(
        ("GET", "other"),
        ("DEL", "answer:1:a"),
        ("DEL", "gateways:1"),
        ("XTRIM", "gateways:1", "MAXLEN", "0"),
        ("MONITOR",),
        ("EVAL", "return 1", "0"),
    ),
    *(("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "LIST"), ("PUBLISH", "c", "x"), ("SUBSCRIBE", "c"), ("REPLICAOF", "127.0.0.1", "1")),
]
"""What none may."""


def client(url: str, user: str | None, password: str | None) -> redis.Redis:
    return redis.Redis("127.0.0.1", urlsplit(url).port or 0, username=user, password=password)


def a_role_does_its_own_and_nothing_else(url: str, role: str) -> None:
    with client(url, role, role_password(PASSWORD, role)) as mine:
        assert mine.ping()
        for command in DONE[role]:
            mine.execute_command(*command)
        others = [command for other, commands in DONE.items() if other != role for command in commands]
        for command in (*others, *REFUSED):
            with pytest.raises(redis.exceptions.NoPermissionError):
                mine.execute_command(*command)


@pytest.mark.parametrize("role", DONE)
def test_a_role_does_its_own_and_nothing_else(valkey: str, role: str) -> None:
    a_role_does_its_own_and_nothing_else(valkey, role)


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (None, None),
        ("model-server", PASSWORD),
        ("default", role_password(PASSWORD, "model-server")),
        ("api-server", role_password(PASSWORD, "model-server")),
        ("nobody", PASSWORD),
        ("model-server", ""),
    ],
)
def test_nobody_comes_in_with_the_password_of_another(valkey: str, user: str | None, password: str | None) -> None:
    with client(valkey, user, password) as stranger, pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()
