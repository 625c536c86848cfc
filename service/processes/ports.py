"""Addresses to listen at, of both families."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from service.settings import SetupError, reason_of

_PORT_IS_WRONG = {errno.EADDRINUSE, errno.EACCES}


def address_of(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The family and the socket address of a host; of a name with both families, the IPv4 one. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    families = [(family, address) for family, *_, address in found]
    return next((one for one in families if one[0] == socket.AF_INET), families[0])


@contextmanager
def binding(host: str, port: int, variable: str) -> Iterator[None]:
    """An OSError of the block, which binds a port, becomes a SetupError that names what to change.

    ``variable`` is that of the port, and ends in ``PORT``; that of the host has the same name with ``HOST``.
    """
    try:
        yield
    except OSError as error:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        remedy = f"{variable} to another port"
        if error.errno not in _PORT_IS_WRONG:
            remedy = f"{variable.removesuffix('PORT')}HOST to an address of this machine"
        raise SetupError(f"cannot listen on {place}: {reason_of(error)}; set {remedy}") from error


def listen(host: str, port: int, variable: str, backlog: int) -> socket.socket:
    """A listening socket; at ``::``, every address of this machine, of either family. Raises SetupError."""
    with binding(host, port, variable):
        family, address = address_of(host, port)
        return socket.create_server(address, family=family, backlog=backlog, dualstack_ipv6=address[0] == "::")


@contextmanager
def serving_at(address: str, variable: str) -> Iterator[None]:
    """An error of the block, which listens at an address of `indexer.rpc.frames`, becomes a SetupError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise SetupError(f"cannot listen on {address}: {reason}; {variable} says where") from error
