"""A secret that both ends of a TCP connection know: each proves it to the other before the first call.

The client sends ``hello`` with a random number, and gets one and the server's proof: the HMAC-SHA256 (FIPS 198-1) of
the word ``server`` and both numbers. Then it sends ``prove`` with its own, for the word ``client``. Neither the secret
nor anything that could be sent a second time goes over the wire. It says who talks, no more: frames are neither
encrypted nor signed, so a network where others can listen needs TLS around it (a mesh, WireGuard). Sockets of a file
system have its permissions, and ask for nothing.
"""

import hmac
import secrets
from typing import Any, Literal

NUMBER_BYTES = 32
# Largest frame of a peer that has proved nothing.
MAX_BYTES = 16 * 1024

# Of this process; None asks nobody. Set once, at start.
SECRET: bytes | None = None


def number() -> bytes:
    """A random number, never used before."""
    return secrets.token_bytes(NUMBER_BYTES)


def proof(secret: bytes, side: Literal["client", "server"], of_client: bytes, of_server: bytes) -> bytes:
    """What only who knows the secret can say of the two numbers."""
    return hmac.digest(secret, side.encode() + of_client + of_server, "sha256")


def is_number(value: Any) -> bool:
    """Whether a peer sent a number."""
    return isinstance(value, bytes) and len(value) == NUMBER_BYTES


def proves(value: Any, secret: bytes, side: Literal["client", "server"], of_client: bytes, of_server: bytes) -> bool:
    """Whether a peer's value is the `proof`."""
    return isinstance(value, bytes) and hmac.compare_digest(value, proof(secret, side, of_client, of_server))
