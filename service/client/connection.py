"""The options of both clients, and their connections."""

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import httpx

from .calls import Call
from .errors import Refused, SetupError

URL = "http://127.0.0.1:8000"
TIMEOUT_S = 20.0  # longer than any deadline of the service

Http = TypeVar("Http", bound=httpx.Client | httpx.AsyncClient)
Transport = TypeVar("Transport", bound=httpx.BaseTransport | httpx.AsyncBaseTransport)


class Connection(Generic[Http, Transport]):
    """The options of a client, and its connections to the service.

    A service on this machine is asked directly: a proxy of the environment would look for it on the proxy's machine.
    """

    _new_http: Callable[..., Http]
    _new_transport: Callable[..., Transport]

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = 0.0,
        transport: Transport | None = None,
    ) -> None:
        self._timeout_s, self._patience_s = timeout_s, patience_s
        headers = _authorization(key)
        base = _parse(url)
        with _usable_environment():
            if transport is None and _is_loopback(base.host):
                transport = self._new_transport(trust_env=base.scheme == "https")  # certificates, no proxy
            self._http = self._new_http(base_url=base, headers=headers, transport=transport)

    def _request(self, call: Call[Any]) -> httpx.Request:
        try:
            return self._http.build_request(
                call.method,
                call.path,
                params=list(call.query) or None,
                headers=dict(call.headers),
                content=call.body,
                timeout=self._timeout_s + call.wait_s,
            )
        except httpx.InvalidURL:  # above 64 KiB, as the service would say
            raise Refused(431, "head_too_large", "the request line would be above 64 KiB", "", None) from None


def _parse(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SetupError(f"the URL of the service cannot be parsed: {error}") from None


@contextmanager
def _usable_environment() -> Iterator[None]:
    try:
        yield
    except httpx.InvalidURL:  # its message may hold a part of a password
        raise SetupError("HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY cannot be parsed") from None
    except (ImportError, ValueError) as error:
        raise SetupError(f"the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}") from None
    except OSError as error:
        raise SetupError(f"SSL_CERT_FILE or SSLKEYLOGFILE cannot be used: {error}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _authorization(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not (key and key.isascii() and key.isprintable()):
        raise ValueError("a key is visible ASCII characters")  # and is not shown
    return {"Authorization": f"Bearer {key}"}
