"""The console's and the reference's files over HTTP: headers, caching, and what they may not hold."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from support.gateway import MemoryGateway

ROOT = Path(__file__).parents[4]
CONSOLE = {
    "/": "text/html; charset=utf-8",
    "/console.css": "text/css; charset=utf-8",
    "/console.js": "text/javascript; charset=utf-8",
    "/experiments.js": "text/javascript; charset=utf-8",
    "/vocabulary.js": "text/javascript; charset=utf-8",
    "/favicon.svg": "image/svg+xml",
}
REFERENCE = {
    "/docs": "text/html; charset=utf-8",
    "/docs/reference.js": "text/javascript; charset=utf-8",
    "/docs/swagger-ui.css": "text/css; charset=utf-8",
    "/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}
PAGES = CONSOLE | REFERENCE
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


@pytest.fixture
async def client():
    async with MemoryGateway().client() as client:
        yield client


class Markup(HTMLParser):
    """What a page's markup refers to, and what in it a strict policy would block."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self._inside = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._inside = tag
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.references += [value for name, value in attrs if name in ("src", "href", "action") and value]
        self.inline += [name for name in attributes if name.startswith("on") or name == "style"]
        self.inline += [tag] * (tag == "style")

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and data.strip():
            self.inline.append(data)


class TestEveryPage:
    @pytest.mark.parametrize(("path", "kind"), PAGES.items())
    async def test_says_what_it_is_and_what_it_may_do(self, client, path, kind):
        response = await client.get(path)

        assert response.status_code == 200
        assert response.headers["content-type"] == kind
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert re.fullmatch(r'"[0-9a-f]{32}"', response.headers["etag"])
        expected = POLICY if path in CONSOLE else POLICY - {"img-src 'self'"} | {"img-src 'self' data:"}
        assert set(response.headers["content-security-policy"].split("; ")) == expected

    @pytest.mark.parametrize("path", PAGES)
    async def test_answers_head_as_get_without_the_body(self, client, path):
        plain = {"Accept-Encoding": "identity"}
        get, head = await client.get(path, headers=plain), await client.head(path, headers=plain)

        assert (head.status_code, head.content) == (200, b"")
        same = ("content-type", "content-length", "etag", "content-security-policy")
        assert [head.headers[name] for name in same] == [get.headers[name] for name in same]
        assert int(get.headers["content-length"]) == len(get.content)

    @pytest.mark.parametrize("path", PAGES)
    async def test_is_not_sent_again_to_who_holds_it(self, client, path):
        etag = (await client.get(path)).headers["etag"]

        for held in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            response = await client.get(path, headers={"If-None-Match": held})
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == etag
            assert "content-security-policy" in response.headers

    @pytest.mark.parametrize("held", ["", '"other"', 'W/"other"', "x", ",", '"' + "0" * 5000 + '"'])
    async def test_is_sent_to_who_holds_another(self, client, held):
        response = await client.get("/console.js", headers={"If-None-Match": held})

        assert response.status_code == 200
        assert response.content

    @pytest.mark.parametrize("path", PAGES)
    async def test_is_packed_for_who_takes_it_packed(self, client, path):
        plain = await client.get(path, headers={"Accept-Encoding": "identity"})
        packed = await client.get(path, headers={"Accept-Encoding": "br, gzip;q=0.5"})

        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.content == plain.content  # httpx has unpacked it
        for response in (packed, plain):
            assert set(response.headers["vary"].split(", ")) == {"Accept-Encoding"}
        assert packed.headers["etag"] != plain.headers["etag"]
        assert int(packed.headers["content-length"]) < 500_000

    @pytest.mark.parametrize("given", ["", "identity", "br", "*;q=0", ","])
    async def test_is_plain_for_who_does_not(self, client, given):
        assert "content-encoding" not in (await client.get("/", headers={"Accept-Encoding": given})).headers

    async def test_is_only_read(self, client):
        for path in PAGES:
            response = await client.post(path, content=b"x")
            assert response.status_code == 405
            assert response.json()["error"]["code"] == "method_not_allowed"
            assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}

    async def test_has_its_own_etag(self, client):
        assert len({(await client.get(path)).headers["etag"] for path in PAGES}) == len(PAGES)

    async def test_is_no_part_of_the_api(self, client):
        paths = (await client.get("/openapi.json")).json()["paths"]

        assert not paths.keys() & PAGES.keys()

    @pytest.mark.parametrize(
        "path", ["/console/console.js", "/console.map", "/docs/", "/docs/nothing.js", "/../app.py"]
    )
    async def test_is_all_there_is(self, client, path):
        assert (await client.get(path)).status_code == 404


class TestMarkup:
    @pytest.mark.parametrize("path", ["/", "/docs"])
    async def test_holds_no_inline_code_and_no_inline_style(self, client, path):
        markup = Markup((await client.get(path)).text)

        assert markup.inline == []
        assert len(set(markup.ids)) == len(markup.ids)

    @pytest.mark.parametrize("path", ["/", "/docs"])
    async def test_refers_only_to_what_is_served_below_it(self, client, path):
        """Relative addresses keep working where a proxy serves all of it under a prefix."""
        references = Markup((await client.get(path)).text).references

        local = {reference for reference in references if not reference.startswith("#")}
        assert local
        for reference in local:
            assert re.fullmatch(r"[a-z][a-z./-]*", reference)
            assert (await client.get(f"/{reference}")).status_code == 200

    async def test_has_every_element_that_the_script_asks_for(self, client):
        script = "".join(
            [(await client.get(path)).text for path in ("/console.js", "/experiments.js", "/vocabulary.js")]
        )
        ids = set(Markup((await client.get("/")).text).ids)

        made = set(re.findall(r'\bid: "([a-z-]+)"', script))
        assert set(re.findall(r'\$\("([a-z0-9-]+)"\)', script)) <= ids | made


class TestTheConsole:
    def test_is_five_files_with_no_step_between_them_and_the_browser(self):
        names = {file.name for file in files("service.api").joinpath("console").iterdir()}

        assert names == {"index.html", "console.css", "console.js", "experiments.js", "vocabulary.js", "favicon.svg"}

    @pytest.mark.parametrize(
        "sink",
        [
            *(
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "DOMParser",
                "createContextualFragment",
            ),
            *("setHTML", "srcdoc", "eval(", "Function(", "javascript:", "import("),
            *("localStorage", "sessionStorage", "indexedDB", "document.cookie", "caches."),
        ],
    )
    async def test_never_turns_text_into_code_and_stores_nothing(self, client, sink):
        for script in ("/console.js", "/experiments.js", "/vocabulary.js"):
            assert sink not in (await client.get(script)).text

    async def test_asks_nothing_of_other_hosts(self, client):
        for path in CONSOLE:
            text = (await client.get(path)).text.replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)


def test_the_wheel_holds_every_page(tmp_path):
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    listed = _names(Path(wheel))

    assert {
        f"service/api/console/{name}"
        for name in ("index.html", "console.css", "console.js", "experiments.js", "vocabulary.js", "favicon.svg")
    } <= listed
    assert {"service/api/reference/index.html", "service/api/reference/reference.js"} <= listed


def _names(archive: Path) -> set[str]:
    from zipfile import ZipFile

    with ZipFile(archive) as opened:
        return set(opened.namelist())
