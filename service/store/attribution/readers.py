"""Readers under names that do not tell who they are.

The name of a reader is an HMAC (RFC 2104, SHA-256, cut to 128 bits) of their digest under a key of the deployment. The
key stands in Redis, beside the events, which hold the readers' own ids: whoever has files alone can neither read the
readers from them nor find out by trying. It is in backups, so that a restored store goes on with the same names.
"""

import hmac
import secrets
from typing import TYPE_CHECKING, Any

from service.store.connection import redis_errors
from service.store.records import digest_of
from service.store.schema import READER_KEY

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis

_KEY_BYTES = 32
_NAME_BYTES = 16


def name_of(reader: str, key: bytes) -> str:
    """The name of a reader in logs and files, 32 hexadecimal digits."""
    return name_of_digest(digest_of(reader), key)


def name_of_digest(digest: str, key: bytes) -> str:
    """The same, of their `digest_of`, by which the logs of Redis name one who was erased."""
    return hmac.digest(key, digest.encode(), "sha256")[:_NAME_BYTES].hex()


async def key_of(redis: "Redis") -> bytes:
    """The deployment's key, made by whoever asks first. Raises StoreUnavailable."""
    with redis_errors():
        known: Any = await redis.get(READER_KEY)
        if known is None:
            await redis.set(READER_KEY, secrets.token_bytes(_KEY_BYTES), nx=True)
            known = await redis.get(READER_KEY)
    return bytes(known)


def sync_key_of(redis: "SyncRedis") -> bytes:
    """The same, for commands."""
    with redis_errors():
        redis.set(READER_KEY, secrets.token_bytes(_KEY_BYTES), nx=True)
        known: Any = redis.get(READER_KEY)
    return bytes(known)
