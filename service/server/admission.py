"""Admission: what a gateway takes on at the same time, and from whom. More is refused before it costs much.

A request takes a permit of its route's kind, and gives it back with its answer. One with a body takes it when the
body is whole, so that a slow sender holds up nobody; when its kind is full, it is told so before the body comes.
A few permits keep a gateway busy; more would only make everybody wait longer.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.api import audit
from service.api.app import request_id_of
from service.api.auth import KINDS, Kind, caller, policy_of
from service.api.responses import error_body
from service.errors import NoteLLMError, Overloaded, RateLimited, TimedOut, UnsupportedMedia
from service.keys import Key, Keyring
from service.server.gunzip import Gunzip
from service.setting_groups import LimitSettings

_SENDS_BODY = frozenset({"POST", "PUT", "PATCH"})
_BODY_GRACE_S = 2.0
_PLAIN, _GZIP = frozenset({"", "identity"}), frozenset({"gzip", "x-gzip"})
_CLOSE = (b"connection", b"close")


class Bucket:
    """Tokens of one key: a request takes one, ``rate_per_s`` come back, and it holds ``burst`` at most."""

    def __init__(self, rate_per_s: float, burst: int, now_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = float(burst)
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """0, and one token less; or how many seconds it takes until there is one."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate_per_s
        self._tokens -= 1
        return 0.0


class Admission:
    """The permits of one gateway process, around its application. Every call comes from its event loop."""

    def __init__(
        self,
        app: ASGIApp,
        limits: LimitSettings,
        keyring: Keyring | None = None,
        routes: Iterable[BaseRoute] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.draining = False
        self.body_bytes = 0
        self._app = app
        self._keyring = keyring
        self._clock = clock
        self._routes = list(_table(routes))
        self._most: dict[Kind, int] = {kind: getattr(limits, kind) for kind in KINDS}
        self._most_of_key = {kind: max(1, int(limits.key_share * most)) for kind, most in self._most.items()}
        self._in_flight: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._of_key: dict[tuple[Kind, str], int] = {}
        self._buckets: dict[str, Bucket] = {}
        self._refused: dict[audit.Refusal, int] = {}
        for *_, template in self._routes:
            for code in (Overloaded.code, RateLimited.code):
                # A rate shows the first refusal only if there was a 0 before.
                metrics.HTTP_REFUSED.labels(template, code)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or refuse it; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        admitted = self.admit(scope)
        if isinstance(admitted, NoteLLMError):
            await self._reject_early(scope, admitted, send)
            return
        body = None if admitted.held else Body(self, admitted, receive, _coding(scope))
        try:
            await self._app(scope, body or receive, _closing(send) if self.draining else send)
        finally:
            if body:
                body.forget()
            admitted.give_back()

    def admit(self, scope: Scope) -> "Permit | NoteLLMError":
        """A permit for a request of which the head is there, or why it gets none."""
        method = scope["method"]
        kind, template = self._classify(method, scope["path"])
        key = caller(scope, self._keyring) if self._keyring else None
        kind, key_id = self._whose(kind, key)
        permit = Permit(self, kind, key_id)
        refusal = self._too_often(key_id) or (self.full(kind, key_id) if method in _SENDS_BODY else permit.take())
        if refusal is None:
            return permit
        noted = audit.Refusal(method, template, key_id, refusal.status, refusal.code)
        self._refused[noted] = self._refused.get(noted, 0) + 1
        return refusal

    def full(self, kind: Kind, key_id: str | None) -> NoteLLMError | None:
        """Why there is no permit of this kind for this key now; None when there is one."""
        if self._in_flight[kind] >= self._most[kind]:
            return Overloaded("the service is busy; try again in a moment")
        if key_id and self._of_key.get((kind, key_id), 0) >= self._most_of_key[kind]:
            return RateLimited("this key has too many requests under way")
        return None

    def enter(self, kind: Kind, key_id: str | None) -> None:
        """One request more."""
        self._in_flight[kind] += 1
        if key_id:
            self._of_key[kind, key_id] = self._of_key.get((kind, key_id), 0) + 1

    def leave(self, kind: Kind, key_id: str | None) -> None:
        """One request less."""
        self._in_flight[kind] -= 1
        if key_id:
            left = self._of_key.pop((kind, key_id)) - 1
            if left:
                self._of_key[kind, key_id] = left

    async def report(self) -> None:
        """Tell metrics and audit log who was refused since the last call: one line for many, for many they are."""
        refused, self._refused = self._refused, {}
        for refusal, count in refused.items():
            metrics.HTTP_REFUSED.labels(refusal.route, refusal.code).inc(count)
            audit.record_refusals(refusal, count)
        for kind, count in self._in_flight.items():
            metrics.HTTP_IN_FLIGHT.labels(kind).set(count)

    def _classify(self, method: str, path: str) -> tuple[Kind, str]:
        if method == "HEAD":
            method = "GET"
        for methods, pattern, kind, template in self._routes:
            if method in methods and pattern.match(path):
                return kind, template
        return "public", "unmatched"

    def _whose(self, kind: Kind, key: Key | None) -> tuple[Kind, str | None]:
        """The permits to take from, and for whom. A stranger takes none of those that are for keys."""
        if key:
            return kind, key.id
        return ("public" if self._keyring else kind), None

    def _too_often(self, key_id: str | None) -> NoteLLMError | None:
        if not key_id or not self.limits.rate_per_s:
            return None
        now_s = self._clock()
        if key_id not in self._buckets:
            self._buckets[key_id] = Bucket(self.limits.rate_per_s, self.limits.burst, now_s)
        wait_s = self._buckets[key_id].take(now_s)
        return RateLimited("this key asks too often", math.ceil(wait_s)) if wait_s else None

    async def _reject_early(self, scope: Scope, error: NoteLLMError, send: Send) -> None:
        """Answer without the application: no routing, no middleware, no line in the access log."""
        request_id = request_id_of(scope)
        body = error_body(error.code, str(error), request_id)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"retry-after", b"%d" % (error.retry_after_s or 1)),
        ]
        # After a head with Expect, nobody knows whether a body comes now or another head.
        if self.draining or "expect" in Headers(scope=scope):
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Permit:
    """What one admitted request may hold; ``held`` from `take` on."""

    __slots__ = ("_admission", "_key_id", "_kind", "held")

    def __init__(self, admission: Admission, kind: Kind, key_id: str | None) -> None:
        self.held = False
        self._admission = admission
        self._kind: Kind = kind
        self._key_id = key_id

    def take(self) -> NoteLLMError | None:
        """Hold it from now on; why that cannot be, if it cannot."""
        refusal = self._admission.full(self._kind, self._key_id)
        if refusal is None:
            self._admission.enter(self._kind, self._key_id)
            self.held = True
        return refusal

    def give_back(self) -> None:
        """Hold it no longer, if it was held."""
        if self.held:
            self.held = False
            self._admission.leave(self._kind, self._key_id)


class Body:
    """A request's body on its way in: due in time, bounded together with all others, admitted when it is whole.

    One with ``Content-Encoding: gzip`` comes out unpacked, and that is what counts. No other coding is taken.
    """

    def __init__(self, admission: Admission, permit: Permit, receive: Receive, coding: str) -> None:
        self._admission = admission
        self._permit = permit
        self._receive = receive
        self._coding = coding
        self._next = Gunzip(self._received) if coding in _GZIP else self._received
        self._clock = asyncio.get_running_loop().time
        self._begun_s = self._clock()
        self._bytes = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        """The next part. Raises UnsupportedMedia, TimedOut, Overloaded, RateLimited, and BadRequest on broken gzip."""
        if self._is_whole:
            return await self._receive()
        if self._coding not in _PLAIN | _GZIP:
            raise UnsupportedMedia("a body is plain or Content-Encoding: gzip")
        message = await self._next()
        if message["type"] == "http.request":
            self._count(len(message.get("body", b"")))
            self._is_whole = not message.get("more_body", False)
            if self._is_whole and (refusal := self._permit.take()):
                raise refusal
        return message

    async def _received(self) -> Message:
        """The next part as it was sent."""
        try:
            async with asyncio.timeout_at(self._begun_s + due_s(self._bytes, self._admission.limits)):
                return await self._receive()
        except TimeoutError:
            raise TimedOut("the body did not arrive in time") from None

    def forget(self) -> None:
        """It takes no more memory."""
        self._admission.body_bytes -= self._bytes
        self._bytes = 0

    def _count(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        self._admission.body_bytes += more_bytes
        if self._admission.body_bytes > self._admission.limits.bodies_bytes:
            raise Overloaded("the service receives too much at once; try again in a moment")


def due_s(received_bytes: int, limits: LimitSettings) -> float:
    """Seconds after its head at which a body of which so much is there must be whole or have grown."""
    return min(limits.body_s, _BODY_GRACE_S + received_bytes / limits.body_bytes_per_s)


def _coding(scope: Scope) -> str:
    """The value of Content-Encoding; empty without one."""
    return ",".join(Headers(scope=scope).getlist("content-encoding")).strip().lower()


def _closing(send: Send) -> Send:
    """The same, with answers that end their connection."""

    async def close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
        await send(message)

    return close


def _table(routes: Iterable[BaseRoute]) -> Iterator[tuple[set[str], re.Pattern[str], Kind, str]]:
    for route in routes:
        policy = policy_of(route)
        if isinstance(route, Route) and policy:
            yield set(route.methods or ()), route.path_regex, policy.kind, route.path_format
