"""The pages for people: the console at `/` and the API's description at `/docs`.

Static files, loaded once, that request nothing from other hosts. They are public: all data comes from the API, which
needs a key itself.
"""

import gzip
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from service.api.auth import GuardedRoute, public
from service.api.etags import is_fresh

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI's style sheet carries its icons as data URLs.
_REFERENCE_POLICY = _POLICY.replace("img-src 'self'", "img-src 'self' data:")
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Page:
    """A file of a package, the path it is served at, and its Content-Security-Policy."""

    path: str
    package: str
    file: str
    policy: str = _POLICY


PAGES = (
    Page("/", "service.api", "console/index.html"),
    Page("/console.css", "service.api", "console/console.css"),
    Page("/console.js", "service.api", "console/console.js"),
    Page("/experiments.js", "service.api", "console/experiments.js"),
    Page("/vocabulary.js", "service.api", "console/vocabulary.js"),
    Page("/favicon.svg", "service.api", "console/favicon.svg"),
    Page("/docs", "service.api", "reference/index.html", _REFERENCE_POLICY),
    Page("/docs/reference.js", "service.api", "reference/reference.js", _REFERENCE_POLICY),
    Page("/docs/swagger-ui.css", "fastapi_swagger", "resources/swagger-ui.css", _REFERENCE_POLICY),
    Page("/docs/swagger-ui-bundle.js", "fastapi_swagger", "resources/swagger-ui-bundle.js", _REFERENCE_POLICY),
)


def _answer(page: Page) -> Callable[[Request], Awaitable[Response]]:
    body = files(page.package).joinpath(page.file).read_bytes()
    plain = _Form(body, _headers(page, body))
    # Packed once: Swagger UI is 1.7 MB, and anybody may request it.
    packed = _Form(gzip.compress(body, compresslevel=6, mtime=0), _headers(page, body, "gzip"))

    async def answer(request: Request) -> Response:
        # The same test as that of the gzip middleware, which would otherwise pack the plain form.
        form = packed if "gzip" in request.headers.get("accept-encoding", "") else plain
        if is_fresh(request.headers, form.headers["ETag"]):
            return Response(status_code=304, headers=form.headers)
        return Response(form.body, headers=form.headers)

    return answer


@dataclass(frozen=True, slots=True)
class _Form:
    """A page as it is sent, plain or packed. A cache tells the two apart by their ETags."""

    body: bytes
    headers: Mapping[str, str]


def _headers(page: Page, body: bytes, encoding: str = "") -> dict[str, str]:
    return {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": page.policy,
        "Content-Type": _KINDS[page.file[page.file.rindex(".") :]],
        "ETag": f'"{hashlib.sha256(encoding.encode() + body).hexdigest()[:32]}"',
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
        **({"Content-Encoding": encoding} if encoding else {}),
    }


router = APIRouter(include_in_schema=False, route_class=GuardedRoute, dependencies=[public])
for _page in PAGES:
    router.add_api_route(_page.path, _answer(_page), methods=["GET", "HEAD"], response_class=Response)
