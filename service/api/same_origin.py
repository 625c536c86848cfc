"""What a service without keys refuses, so that no web page that somebody visits can use it: decision 056.

Pages of the origins that `NOTELLM_HTTP__CORS_ORIGINS` names are the exception.

A browser on this machine reaches the service, whatever site its page is from. That page can send what a form can, and
with a name that leads to 127.0.0.1 it can read the answers. It cannot choose `Host` and `Origin`, nor declare a body
as JSON without asking first, nor leave out that it is a browser that asks. With keys none of this is needed: a page of
another site has no key.
"""

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers

from service.errors import Forbidden, UnsupportedMedia

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_PORTS = {"http": "80", "https": "443"}
_DECLARED = frozenset(
    {"application/json", "application/merge-patch+json", "application/x-ndjson", "application/ndjson"}
)
# What curl says of a body when nobody told it; a form's page says so, too.
_UNSAID = frozenset({"", "application/x-www-form-urlencoded"})
_BROWSERS = ("origin", "sec-fetch-site", "referer")
_SENDS_BODY = frozenset({"POST", "PUT", "PATCH"})
_ANY = frozenset({"0.0.0.0", "::"})


class SameOrigin:
    """Lets in who calls the service by a name of its own, and no page of another site.

    Args:
        address: where the service listens: loopback, one address, or all of them.
        names: by which else it may be called, without port.
        origins: whose pages may call it although they are of another site.
    """

    def __init__(self, address: str, names: Iterable[str], origins: Iterable[str] = ()) -> None:
        self._address = address
        self._origins = frozenset(origins)
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    def check(self, method: str, headers: Headers) -> None:
        """Let a request in. Raises Forbidden and UnsupportedMedia."""
        host = headers.get("host")  # only HTTP/1.0, which no browser speaks, may have none
        if host is not None and not self._is_own(host):
            raise Forbidden(
                "without keys the service answers to localhost and to its address; NOTELLM_HTTP__HOSTS adds names"
            )
        origins = headers.getlist("origin")
        if origins and not (len(origins) == 1 and self._may_call(origins[0], host)):
            raise Forbidden("without keys a page of another site is answered if NOTELLM_HTTP__CORS_ORIGINS names it")
        if method in _SENDS_BODY and _has_body(headers) and not _is_declared(headers):
            raise UnsupportedMedia("without keys a body is declared: Content-Type: application/json, or .../x-ndjson")

    def _may_call(self, origin: str, host: str | None) -> bool:
        return origin in self._origins or (host is not None and _is_same(origin, host))

    def _is_own(self, host: str) -> bool:
        authority = _AUTHORITY.fullmatch(host.lower())
        if authority is None:
            return False
        name = authority[1].strip("[]").rstrip(".")
        if name in self._names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name == self._address
        # Nobody can make another machine's page be of an address that leads here: only names are looked up.
        return address.is_loopback or self._address in _ANY or name == self._address


def _is_same(origin: str, host: str) -> bool:
    scheme, _, authority = origin.lower().partition("://")
    port = _PORTS.get(scheme)
    return port is not None and authority.removesuffix(f":{port}") == host.lower().removesuffix(f":{port}")


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _is_declared(headers: Headers) -> bool:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    by_browser = any(name in headers for name in _BROWSERS)
    return media_type in _DECLARED or (media_type in _UNSAID and not by_browser)
