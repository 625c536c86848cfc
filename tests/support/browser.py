"""A real Chromium for tests and screenshots, and a record of what a page did that it should not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright
from support.programs import need

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 20_000
REFUSED = "Failed to load resource"  # what Chromium says of every answer that is an error

Scheme = Literal["light", "dark"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser. Without one, tests are skipped; in CI they fail."""
    binary = need("chromium", "chromium fonts-dejavu-core")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """One person's page on a service: ``page`` to act on, and what went on behind it.

    ``asked`` are the requests to the API, ``outside`` those to other hosts, ``mishaps`` errors of scripts,
    blocked content and dialogs, ``refusals`` the lines that Chromium logs for answers that are errors.
    """

    def __init__(self, browser: Browser, api: str, width: int = 1280, scheme: Scheme = "light") -> None:
        self.api = api
        self.asked: list[Request] = []
        self.outside: list[str] = []
        self.mishaps: list[str] = []
        self.refusals: list[str] = []
        height = 844 if width < 500 else 900
        self._context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", self._note_request)
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.mishaps.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.mishaps.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("popup", lambda popup: self.mishaps.append(f"popup: {popup.url}"))

    def open(self, place: str = "") -> Page:
        """Load the console at this place, as if the address was typed."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.api}/{place}")
        return self.page

    def answer(self, pattern: str, status: int = 200, body: object = None, **headers: str) -> None:
        """From now on the API is not asked for what the pattern names; this is the answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def fulfil(route: Route) -> None:
            route.fulfill(status=status, json=body, headers=named)

        self.page.route(pattern, fulfil)

    def refuse(self, pattern: str, status: int, code: str, **headers: str) -> None:
        """`answer` with an error in the contract's shape."""
        error = {"code": code, "message": "as the test wants it", "request_id": "r-1"}
        self.answer(pattern, status, {"error": error}, **headers)

    def close(self) -> None:
        """Forget the person."""
        self._context.close()

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.api}/", "about:", "data:")):
            self.outside.append(request.url)
        elif request.resource_type == "fetch":
            self.asked.append(request)

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.text.startswith(REFUSED):
            self.refusals.append(message.text)
        elif message.type in ("error", "warning"):
            self.mishaps.append(message.text)
