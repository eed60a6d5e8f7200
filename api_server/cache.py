"""How this process reaches the cache server, and what may go wrong there. Nothing that does may fail a request."""

import msgspec
import redis.asyncio
import redis.exceptions

from api_server.settings import Settings

STRANGE = (
    *(redis.exceptions.RedisError, OSError, TimeoutError, msgspec.MsgspecError),
    *(ValueError, TypeError, LookupError, AttributeError, RecursionError, NotImplementedError),
)
"""What a client of anything that is no cache server may meet."""


def connect(settings: Settings, timeout_s: float) -> redis.asyncio.Redis:
    """A client, which connects when it is used. Raises SettingsError without the password's file."""
    return redis.asyncio.Redis.from_url(
        settings.cache_url,
        **{"password": settings.cache_password} if settings.cache_password else {},
        **{"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": None, "protocol": 2},
    )
