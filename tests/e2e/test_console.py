"""The console and the API's description in a real browser, over the real service and the committed model."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect
from support.browser import Visit, chromium
from support.service import Service, running, until

from model.data.samples.generate import sample_notes
from service.contract.examples import EXAMPLES
from service.settings import MINI

CATEGORIES = ("Travel", "Restaurants", "Dogs", "Coffee", "Yoga")
VIEWS = (
    "#explore",
    "#explore/travel-01",
    "#explore?text=A weekend of ramen",
    "#write",
    "#vocabulary",
    "#experiments",
    "#service",
)
EXPERIMENT: dict = EXAMPLES["experiment"]
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    "javascript:alert(4)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of another server, with an empty page: an origin for each name of this machine."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def service(browser: Browser, elsewhere: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With the samples of a few categories, all of them searchable."""
    notes = [note for note in sample_notes() if note.category in CATEGORIES]
    bulk = [
        {
            "note_id": note.id,
            "title": note.title,
            "content": note.content,
            "hashtags": list(note.hashtags),
            "category": note.category,
        }
        for note in notes
    ]
    service = Service(tmp_path_factory.mktemp("console"), MINI)
    service.environment["NOTELLM_HTTP__CORS_ORIGINS"] = json.dumps([f"http://127.0.0.1:{elsewhere}"])
    with running(service):
        assert httpx.post(f"{service.api}/notes", json=bulk, timeout=30).json()["accepted"] == len(notes)
        until(lambda: status(service)["notes"]["searchable"] == len(notes), 120)
        yield service


@pytest.fixture(scope="module")
def hostile(service: Service) -> str:
    """The id of a note whose every field is markup; another one close to it."""
    for note_id in ("javascript:alert", "hostile-2"):
        note = {
            "title": f"{HOSTILE[0]} {HOSTILE[1]}",
            "content": "\n".join(HOSTILE),
            "hashtags": list(HOSTILE),
            "category": HOSTILE[2],
            "author": HOSTILE[1],
        }
        written = httpx.put(f"{service.api}/notes/{note_id}?wait=10", json=note, timeout=30)
        assert written.json()["status"] == "searchable"
    return "javascript:alert"


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Callable[..., Visit]]:
    """Opens the console for another person. Whatever they do, no host but ours is asked and nothing breaks."""
    visits: list[Visit] = []

    def begin(**how: object) -> Visit:
        visits.append(Visit(browser, service.api, **how))
        return visits[-1]

    yield begin
    for one in visits:
        one.close()
        assert (one.outside, one.mishaps) == ([], [])


def status(service: Service) -> dict:
    return httpx.get(f"{service.api}/status", timeout=30).json()


def get(service: Service, path: str) -> dict:
    return httpx.get(f"{service.api}/{path}", timeout=30).raise_for_status().json()


def titles(page: Page, within: str = "#results") -> list[str]:
    return page.locator(f"{within} .result a").all_inner_texts()


def search(page: Page, text: str) -> None:
    page.fill("#query", text)
    page.press("#query", "Enter")


def shows_note(page: Page, title: str) -> None:
    expect(page.locator("#note-title")).to_have_text(title)


CALLS = """async (api) => {
  const call = async (method, path, headers = {}, body = undefined) => {
    const answer = await fetch(api + path, { method, headers, body: body && JSON.stringify(body) });
    return [answer.status, answer.headers.get("etag"), Boolean(answer.headers.get("x-request-id"))];
  };
  const json = { "Content-Type": "application/json" };
  return [
    await call("PUT", "/notes/cors-1?wait=10", { ...json, "Idempotency-Key": "cors" }, { title: "Harbor tram" }),
    await call("GET", "/notes/cors-1"),
    await call("PUT", "/notes/cors-1", { ...json, "If-Match": '"7"', Authorization: "Bearer none" }, { title: "Bus" }),
    await call("POST", "/notes/tags", json, { title: "Harbor tram" }),
    await call("DELETE", "/notes/cors-1"),
    await call("GET", "/notes/cors-1"),
  ];
}"""


class TestAPageOfAnotherOrigin:
    def test_may_call_the_api_and_read_its_answers_if_it_is_listed(self, browser, service, elsewhere):
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{elsewhere}")
            answers = page.evaluate(CALLS, service.api)
        assert [answer[0] for answer in answers] == [200, 200, 412, 200, 204, 404]
        assert answers[0][1] == '"1"'
        assert answers[1][1].startswith('"1-')
        assert all(has_id for *_, has_id in answers)

    def test_may_not_if_it_is_not(self, browser, service, elsewhere):
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(f"http://localhost:{elsewhere}")
            for method in ("GET", "PUT", "DELETE"):
                called = "([url, method]) => fetch(url, { method }).then(() => 'answered', () => 'refused')"
                assert page.evaluate(called, [f"{service.api}/notes/travel-01", method]) == "refused"
        assert get(service, "notes/travel-01")["version"] == 1


class TestExplore:
    def test_shows_a_note_and_its_related_notes_as_the_api_has_them(self, visit, service):
        page = visit().open()
        search(page, "travel-01")

        note, related = get(service, "notes/travel-01"), get(service, "notes/travel-01/related")
        shows_note(page, note["title"])
        expect(page.locator("#note")).to_contain_text(note["content"])
        assert titles(page) == [item["title"] for item in related["items"]]
        for item, shown in zip(related["items"], page.locator("#results .result").all(), strict=True):
            expect(shown.locator(".category")).to_have_text(item["category"])
            assert shown.locator(".score").inner_text().split() == ["Score", f"{item['score']:.2f}"]
            width = shown.locator(".bar span").evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth")
            assert width == pytest.approx(item["score"], abs=0.02)

    def test_marks_exactly_the_hashtags_in_common(self, visit, service):
        page = visit().open("#explore/travel-01")
        shows_note(page, get(service, "notes/travel-01")["title"])

        own = set(get(service, "notes/travel-01")["hashtags"])
        items = get(service, "notes/travel-01/related")["items"]
        expected = [f"#{tag}" for item in items for tag in item["hashtags"] if tag in own]
        assert len(expected) > 5
        marked = page.locator("#results .tag.common").all_text_contents()
        assert [text.removesuffix(", in common") for text in marked] == expected

    def test_walks_on_by_a_click_and_back(self, visit, service):
        page = visit().open("#explore/travel-01")
        first = get(service, "notes/travel-01/related")["items"][0]

        page.click("#results .result >> nth=0")
        shows_note(page, first["title"])
        assert page.url.endswith(f"#explore/{first['note_id']}")
        page.go_back()

        shows_note(page, get(service, "notes/travel-01")["title"])

    def test_of_two_notes_shows_the_one_that_was_asked_for_last(self, visit, service):
        """Also when the answer about the other one comes later."""
        person = visit()
        page = person.page
        held: list[Route] = []
        ended: list[str] = []
        for event in ("requestfinished", "requestfailed"):
            page.on(event, lambda request: ended.append(urlsplit(request.url).path))
        page.route("**/notes/travel-01", lambda route: held.append(route))
        person.open("#explore/travel-01")
        expect(page.locator("#found")).to_have_attribute("aria-busy", "true")
        search(page, "dogs-05")
        shows_note(page, get(service, "notes/dogs-05")["title"])
        for route in held:
            route.continue_()
        while "/notes/travel-01" not in ended:
            page.wait_for_timeout(20)

        shows_note(page, get(service, "notes/dogs-05")["title"])

    def test_is_where_it_was_left_when_it_is_opened_again(self, visit, service):
        page = visit().open("#explore/travel-01")
        shows_note(page, get(service, "notes/travel-01")["title"])
        page.click(".views >> text=Service")
        expect(page.locator("#figures")).to_be_visible()
        page.click(".views >> text=Explore")

        shows_note(page, get(service, "notes/travel-01")["title"])
        page.click(".brand")
        expect(page.locator("#start")).to_be_visible()

    def test_reads_pasted_text_as_a_title_and_its_content(self, visit):
        person = visit()
        page = person.open()
        search(page, "Puppy at night\nWe moved the crate next to our bed.")

        shows_note(page, "Puppy at night")
        expect(page.locator("#note")).to_contain_text("We moved the crate next to our bed.")
        expect(page.locator("#note .model")).to_contain_text("Dogs")
        assert len(titles(page)) == 10
        text = {"title": "Puppy at night", "content": "We moved the crate next to our bed."}
        asked = {urlsplit(request.url).path: request.post_data_json for request in person.asked[-2:]}
        assert asked == {"/notes/tags": text, "/related": {"text": text}}
        page.click("text=Write this note")
        expect(page.locator("#draft-title")).to_have_value("Puppy at night")

    def test_reads_a_plain_word_that_is_no_id_as_text(self, visit, service):
        page = visit().open()
        search(page, "espresso")

        shows_note(page, "espresso")
        expect(page.locator("#results .category").first).to_have_text("Coffee")
        assert titles(page) == [item["title"] for item in get(service, "search?q=espresso")["items"]]

    def test_refines_a_search_in_words(self, visit, service):
        page = visit().open("#explore?text=espresso at home")
        shows_note(page, "espresso at home")
        page.click("text=Refine")
        page.fill("#filter", 'NOT category = "Coffee"')
        page.press("#filter", "Enter")
        page.fill("#group-by", "category")

        query = "search?q=espresso+at+home&group_by=category&filter=NOT+category+%3D+%22Coffee%22"
        refined = [item["title"] for item in get(service, query)["items"]]
        expect(page.locator("#results .result")).to_have_count(len(refined))
        expect(page.locator("#results .result a").first).to_have_text(refined[0])
        assert titles(page) == refined
        assert "Coffee" not in page.locator("#results .category").all_inner_texts()
        page.reload()
        expect(page.locator("#filters-count")).to_have_text("· 2 set")
        page.click("text=Refine")
        page.fill("#filter", "category = ")
        page.press("#filter", "Enter")
        expect(page.locator("#explore-notice")).to_contain_text("filter: ")

    def test_sends_a_parameter_only_once_it_is_not_its_default(self, visit, service):
        person = visit()
        page = person.page
        answered = get(service, "notes/travel-01/related")
        for item in answered["items"]:
            item["explain"] = {"cosine": 0.5125, "popularity": 0.0125, "hashtags_in_common": item["hashtags"][:1]}
        person.answer("**/related?*", 200, answered)
        person.open("#explore/travel-01")
        shows_note(page, get(service, "notes/travel-01")["title"])
        assert urlsplit(person.asked[-1].url).query == ""

        page.click("text=Refine")
        page.fill("#filter-category", "Travel")
        page.press("#filter-category", "Enter")
        page.fill("#filter-category", "Dogs")
        page.press("#filter-category", "Enter")
        page.locator("#diversity").fill("0.3")
        page.locator("#debias").fill("0.65")
        page.check("#exclude-author")
        page.select_option("#limit", "25")
        page.check("#explain")

        expect(page.locator("#results .parts").first).to_contain_text(
            "cosine 0.512 · popularity 0.013 · 1 hashtag in common"
        )
        assert page.locator("#results .tag.common").count() == len(answered["items"])
        assert parse_qsl(urlsplit(person.asked[-1].url).query) == [
            ("category", "Travel"),
            ("category", "Dogs"),
            ("diversity", "0.3"),
            ("debias", "0.65"),
            ("k", "25"),
            ("exclude_author", "1"),
            ("explain", "1"),
        ]
        page.reload()
        expect(page.locator("#filters-count")).to_have_text("· 7 set")
        page.click("text=Refine")
        page.click("text=Reset")
        expect(page.locator("#filters-count")).to_have_text("")
        expect(page.locator("#results .parts")).to_have_count(0)
        assert urlsplit(person.asked[-1].url).query == ""

    def test_refines_as_the_api_does(self, visit, service):
        page = visit().open("#explore/travel-01")
        shows_note(page, get(service, "notes/travel-01")["title"])
        page.click("text=Refine")
        page.fill("#filter-category", "Dogs")
        page.press("#filter-category", "Enter")
        page.check("#explain")

        expect(page.locator("#results .parts")).to_have_count(10)
        refined = get(service, "notes/travel-01/related?category=Dogs&explain=1")["items"]
        assert titles(page) == [item["title"] for item in refined]
        assert page.locator("#results .category").all_inner_texts() == ["Dogs"] * 10
        cosines = [f"cosine {item['explain']['cosine']:.3f}" for item in refined]
        assert [text.split(" · ")[0] for text in page.locator("#results .parts").all_inner_texts()] == cosines
        page.click("#results .result >> nth=0")
        shows_note(page, refined[0]["title"])
        expect(page.locator("#filters-count")).to_have_text("· 2 set")

    def test_says_when_no_note_passes_the_filters(self, visit, service):
        person = visit()
        person.answer("**/related?*", 200, get(service, "notes/travel-01/related") | {"items": []})

        page = person.open("#explore/travel-01?category=Opera")

        expect(page.locator("#results")).to_contain_text(
            "No note passes these filters. Loosen them, or reset them under Refine."
        )

    def test_teaches_what_to_type(self, visit):
        page = visit().open()

        expect(page.locator("#start-filled")).to_contain_text("Type the id of a note")
        page.click("#examples button >> nth=0")
        expect(page.locator("#results .result")).to_have_count(10)

    def test_of_an_empty_store_says_how_to_fill_it(self, visit, service):
        person = visit()
        empty = {"live": 0, "searchable": 0, "pending": 0, "failed": 0}
        person.answer("**/status", 200, status(service) | {"notes": empty})

        page = person.open()

        expect(page.locator("#start")).to_contain_text("notellm load samples")
        expect(page.locator("#examples")).to_be_hidden()


class TestWrite:
    def test_suggests_while_typing_and_ends_the_request_before(self, visit):
        person = visit()
        page = person.page
        ended: list[str] = []
        page.on("requestfailed", lambda request: ended.append(request.post_data_json["title"]))
        drafts: list[str] = []

        def hold_the_first(route: Route) -> None:
            drafts.append(route.request.post_data_json["title"])
            if len(drafts) > 1:
                route.continue_()

        page.route("**/notes/tags", hold_the_first)
        person.open("#write")
        expect(page.locator("#suggestions-empty")).to_be_visible()
        with page.expect_request("**/notes/tags"):
            page.locator("#draft-title").press_sequentially("My puppy")
        page.locator("#draft-title").press_sequentially(" finally sleeps")

        expect(page.locator("#suggested-category button")).to_contain_text("Dogs")
        expect(page.locator("#draft-related .result")).to_have_count(5)
        assert ended == ["My puppy"]
        assert drafts == ["My puppy", "My puppy finally sleeps"]
        assert person.refusals == []

    def test_takes_a_suggested_hashtag_and_asks_for_others(self, visit):
        person = visit()
        page = person.open("#write")
        page.fill("#draft-title", "A weekend of ramen in Osaka")
        first = page.locator("#suggested-hashtags button").first
        taken = re.search(r"#(\w+) ", first.inner_text())[1]

        with page.expect_response("**/notes/tags") as answered:
            first.click()

        assert answered.value.request.post_data_json["hashtags"] == [taken]
        expect(page.locator("#draft-hashtags li")).to_have_text([f"#{taken} ×"])
        expect(page.locator("#suggestions")).not_to_have_attribute("aria-busy", "true")
        assert f"#{taken}" not in " ".join(page.locator("#suggested-hashtags button").all_inner_texts()).split()
        page.click("#suggested-category button")
        expect(page.locator("#draft-category")).to_have_value(answered.value.json()["category"]["name"])
        expect(page.locator("#suggested-category button")).to_have_attribute("aria-pressed", "true")
        page.click("#draft-hashtags li button")
        expect(page.locator("#draft-hashtags li")).to_have_count(0)

    def test_publishes_a_note_that_is_then_found(self, visit, service):
        page = visit().open("#write")
        page.fill("#draft-title", "Night bus to Oaxaca")
        page.fill("#draft-content", "Cold air, bad films,\na sunrise over agave fields.")
        page.locator("#draft-hashtag").press_sequentially("#nightbus, mexico overland ")
        page.fill("#draft-category", "Travel")
        page.fill("#draft-author", "a1")
        page.click("#publish")

        shows_note(page, "Night bus to Oaxaca")
        expect(page.locator("#note .good")).to_contain_text("Published, and found")
        expect(page.locator("#results .result")).to_have_count(10)
        note_id = page.url.rpartition("/")[2]
        stored = get(service, f"notes/{note_id}")
        expected = {
            "title": "Night bus to Oaxaca",
            "content": "Cold air, bad films,\na sunrise over agave fields.",
            "hashtags": ["nightbus", "mexico", "overland"],
            "category": "Travel",
            "author": "a1",
            "version": 1,
            "status": "searchable",
        }
        assert {name: stored[name] for name in expected} == expected
        page.click("text=Write")
        expect(page.locator("#draft-title")).to_have_value("")

    def test_tries_again_by_itself_when_the_service_is_busy_and_writes_once(self, visit, service):
        person = visit()
        page = person.page
        page.clock.install()
        person.open("#write")
        person.refuse("**/notes/*?wait=10", 503, "queue_full", Retry_After="7")
        page.fill("#draft-title", "Seven kinds of naps")
        page.click("#publish")
        expect(page.locator("#draft-notice")).to_contain_text("Too many notes wait to be read. Trying again in 7 s.")
        page.clock.run_for(2000)
        expect(page.locator("#draft-notice")).to_contain_text("Trying again in 5 s.")
        page.unroute("**/notes/*?wait=10")
        page.clock.run_for(5000)

        shows_note(page, "Seven kinds of naps")
        writes = {request.url for request in person.asked if request.method == "PUT"}
        assert len(writes) == 1
        assert get(service, f"notes/{page.url.rpartition('/')[2]}")["version"] == 1

    def test_keeps_a_draft_that_was_refused_as_it_is_and_stops_trying_once_it_is_changed(self, visit):
        person = visit()
        page = person.page
        page.clock.install()
        person.open("#write")
        person.refuse("**/notes/*?wait=10", 503, "store_unavailable", Retry_After="4")
        page.fill("#draft-title", "Half a thought")
        page.press("#draft-title", "Control+Enter")
        expect(page.locator("#draft-notice")).to_contain_text("The store does not answer. Trying again in 4 s.")
        expect(page.locator("#draft-title")).to_be_focused()
        page.keyboard.type(", and the rest")
        expect(page.locator("#draft-notice")).to_be_hidden()
        page.clock.run_for(20_000)

        expect(page.locator("#draft-title")).to_have_value("Half a thought, and the rest")
        assert sum(request.method == "PUT" for request in person.asked) == 1

    def test_publishes_nothing_that_says_nothing_and_not_by_enter_in_a_line(self, visit):
        person = visit()
        page = person.open("#write")
        page.fill("#draft-title", "   ")
        page.press("#draft-title", "Enter")
        expect(page.locator("#draft-notice")).to_be_hidden()
        page.press("#draft-title", "Control+Enter")

        expect(page.locator("#draft-notice")).to_contain_text("A note needs a title or some text.")
        expect(page.locator("#draft-title")).to_be_focused()
        assert [request.method for request in person.asked] == []


class TestHostileText:
    def test_of_a_note_stays_text(self, visit, hostile):
        page = visit().open(f"#explore/{hostile}?duplicates=keep")

        shows_note(page, f"{HOSTILE[0]} {HOSTILE[1]}")
        card, neighbor = page.locator("#note"), page.locator("#results .result").first
        for text in HOSTILE:
            expect(card).to_contain_text(text)
            expect(neighbor).to_contain_text(f"#{text}")
        assert titles(page)[0] == f"{HOSTILE[0]} {HOSTILE[1]}"
        assert self.made_of_text(page)
        page.click("#results .result >> nth=0")
        expect(page).to_have_url(re.compile(r"#explore/hostile-2\?duplicates=keep$"))

    def test_in_a_draft_and_in_the_address_stays_text(self, visit):
        person = visit()
        page = person.open("#write")
        page.fill("#draft-title", HOSTILE[0])
        page.fill("#draft-hashtag", HOSTILE[2])
        page.press("#draft-hashtag", "Enter")
        expect(page.locator("#draft-hashtags")).to_contain_text(HOSTILE[2])
        expect(page.locator("#suggested-category button")).to_be_visible()
        assert self.made_of_text(page)

        for text in HOSTILE:
            page = person.open(f"#explore?text={text}")
            shows_note(page, text)
            assert self.made_of_text(page)
        for text in (*HOSTILE, "..", "%", "a b", "x" * 129):
            page = person.open(f"#explore/{text}")
            expect(page.locator("#explore-notice")).to_be_visible()
            assert self.made_of_text(page)
        page = person.open("#constructor")
        expect(page.locator("#start")).to_be_visible()

    def test_in_an_answer_that_breaks_the_contract_stays_text(self, visit, service):
        person = visit()
        item = {"note_id": HOSTILE[1], "score": 0.5, "title": HOSTILE[0], "hashtags": [HOSTILE[1]]}
        person.answer("**/related", 200, get(service, "notes/travel-01/related") | {"items": [item]})
        person.answer("**/status", 200, json.loads(json.dumps(status(service)).replace("flat", HOSTILE[1])))

        page = person.open("#explore/travel-01")
        expect(page.locator("#results .result")).to_contain_text(HOSTILE[1])
        assert page.locator("#results .result a").get_attribute("href").startswith("#explore/%3Cscript")
        assert self.made_of_text(page)
        page = person.open("#service")
        expect(page.locator("#shards")).to_contain_text(HOSTILE[1])
        assert self.made_of_text(page)

    def made_of_text(self, page: Page) -> bool:
        """The page holds the one script and the one picture it came with, and no link that leaves it."""
        assert page.locator("script").count() == page.locator("img").count() == 1
        assert (
            page.locator("svg:not(.chart svg), iframe, object, embed, form[action], [onload], [onerror]").count() == 0
        )
        links = page.evaluate("[...document.links].map(link => link.getAttribute('href'))")
        return all(link.startswith("#") or link == "docs" for link in links)


class TestTrouble:
    def test_of_an_unknown_id_is_a_sentence_with_a_way_on(self, visit):
        page = visit().open("#explore/nothing-99")

        expect(page.locator("#explore-notice")).to_contain_text("No note has this id. Check the spelling")
        expect(page.locator("#announcement")).to_contain_text("No note has this id")
        page.click("text=Search for it as text")
        shows_note(page, "nothing-99")

    def test_leaves_nothing_of_the_note_before(self, visit, service):
        page = visit().open("#explore/travel-01")
        shows_note(page, get(service, "notes/travel-01")["title"])
        search(page, "nothing-99")

        expect(page.locator("#explore-notice")).to_contain_text("No note has this id")
        expect(page.locator("#found")).to_be_hidden()

    def test_of_a_pending_note_ends_by_itself_once_it_is_searchable(self, visit, service):
        worker = service.children()["worker"]
        os.kill(worker, signal.SIGSTOP)
        try:
            httpx.put(f"{service.api}/notes/slow-1", json={"title": "Slow tea"}, timeout=30)
            page = visit().open("#explore/slow-1")
            shows_note(page, "Slow tea")
            expect(page.locator("#explore-notice")).to_contain_text(
                "stored but not searchable yet. Trying again in 1 s."
            )
            expect(page.locator("#note")).to_contain_text("not searchable yet")
        finally:
            os.kill(worker, signal.SIGCONT)

        expect(page.locator("#results .result")).to_have_count(10)
        expect(page.locator("#explore-notice")).to_be_hidden()

    def test_of_an_edited_note_are_those_of_the_version_before_and_it_says_so(self, visit, service):
        worker = service.children()["worker"]
        httpx.put(f"{service.api}/notes/edited-1?wait=10", json={"title": "Green tea at dawn"}, timeout=30)
        os.kill(worker, signal.SIGSTOP)
        try:
            httpx.put(f"{service.api}/notes/edited-1", json={"title": "A dog at the lake"}, timeout=30)
            page = visit().open("#explore/edited-1")
            shows_note(page, "A dog at the lake")
            expect(page.locator("#results .result")).to_have_count(10)
            expect(page.locator("#degraded")).to_contain_text("these suit the version before it")
        finally:
            os.kill(worker, signal.SIGCONT)

    def test_of_a_text_without_a_word_that_the_model_knows_says_so(self, visit, service):
        page = visit().open("#explore?text=\U0001f389\U0001f389")

        expect(page.locator("#results")).to_contain_text("The model knows no word of this text")
        expect(page.locator("#note .category")).to_have_count(0)

    def test_of_a_note_that_the_model_could_not_read_says_why_and_does_not_try_again(self, visit, service):
        person = visit()
        note = get(service, "notes/travel-01") | {"status": "failed", "reason": "OverflowError"}
        person.answer("**/notes/travel-01", 200, note)
        person.refuse("**/notes/travel-01/related", 409, "note_pending", Retry_After="1")

        page = person.open("#explore/travel-01")

        expect(page.locator("#explore-notice")).to_contain_text("The model could not read this note (OverflowError)")
        expect(page.locator("#explore-notice button")).to_have_count(0)

    def test_of_a_service_that_is_gone_ends_by_itself_when_it_is_back(self, visit, service):
        page = visit().open("#explore/travel-01")
        shows_note(page, get(service, "notes/travel-01")["title"])
        os.kill(service.children()["gateway"], signal.SIGKILL)
        search(page, "dogs-05")

        expect(page.locator("#explore-notice")).to_contain_text(
            "The service does not answer. Check that it runs (notellm serve)"
        )
        expect(page.locator("#results .result")).to_have_count(10)
        until(service.ready)
        expect(page.locator("#explore-notice")).to_be_hidden()
        shows_note(page, get(service, "notes/dogs-05")["title"])

    @pytest.mark.parametrize(
        ("refused", "code", "sentence"),
        [
            (429, "too_many_requests", "The service gets too many requests. Trying again in 3 s."),
            (503, "index_unavailable", "The index does not answer. Trying again in 3 s."),
            (503, "new_code", "The service is not ready. Trying again in 3 s."),
            (500, "internal", "The service failed on this, and its log names the request r-1. Try again later."),
            (422, "invalid_request", "The service refused this: as the test wants it. Change it, and try again."),
            (413, "too_large", "This is more than the service takes. Shorten it, and try again."),
        ],
    )
    def test_is_told_in_words(self, visit, refused, code, sentence):
        person = visit()
        person.page.clock.install()
        person.refuse("**/notes/tags", refused, code, Retry_After="3" if refused in (429, 503) else "")

        page = person.open("#explore?text=tea for two")

        expect(page.locator("#explore-notice p")).to_contain_text(sentence)
        if refused in (429, 500, 503):
            page.unroute("**/notes/tags")
            page.click("text=Try now")
            shows_note(page, "tea for two")

    def test_of_one_thing_never_comes_back_while_another_is_loaded(self, visit, service):
        """The countdown of a load that failed ends with the next load, also when that one takes longer."""
        person = visit()
        page = person.page
        page.clock.install()
        person.refuse("**/notes/tags", 503, "worker_unavailable", Retry_After="2")
        person.open("#explore?text=tea for two")
        expect(page.locator("#explore-notice")).to_contain_text("No worker is free to read this. Trying again in 2 s.")
        held: list[Route] = []
        page.route("**/notes/travel-01", lambda route: held.append(route))
        search(page, "travel-01")
        expect(page.locator("#found")).to_have_attribute("aria-busy", "true")
        page.clock.run_for(10_000)
        for route in held:
            route.continue_()

        shows_note(page, get(service, "notes/travel-01")["title"])
        posted = [urlsplit(request.url).path for request in person.asked if request.method == "POST"]
        assert sorted(posted) == ["/notes/tags", "/search"]

    def test_of_an_answer_that_is_not_the_services_is_told_too(self, visit):
        person = visit()
        person.page.route("**/notes/tags", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))

        page = person.open("#explore?text=tea for two")

        expect(page.locator("#explore-notice")).to_contain_text("The service failed on this. Try again later.")

    def test_of_a_part_of_the_index_is_said_beside_what_there_is(self, visit, service):
        person = visit()
        related = get(service, "notes/travel-01/related")
        person.answer("**/related", 200, related | {"degraded": True, "shards": {"ok": 1, "total": 2}})

        page = person.open("#explore/travel-01")

        expect(page.locator("#degraded")).to_contain_text("Only 1 of 2 shards answered: some notes are missing.")
        assert len(titles(page)) == 10

    def test_of_the_store_leaves_ids_and_scores(self, visit, service):
        person = visit()
        items = [{"note_id": "dogs-05", "score": 0.5}]
        person.answer("**/related", 200, get(service, "notes/travel-01/related") | {"items": items, "degraded": True})
        person.refuse("**/notes/travel-01", 503, "store_unavailable", Retry_After="1")

        page = person.open("#explore/travel-01")

        shows_note(page, "travel-01")
        expect(page.locator("#note")).to_contain_text("the text of the note is missing")
        assert titles(page) == ["dogs-05"]


class TestHashtags:
    def test_shows_what_is_in_use_and_obeys_the_rules_that_are_set(self, visit, service):
        for number, tags in enumerate((["zzcrême"], ["zzcreme", "zzcrème"], ["zzpuddings", "zzpudings"], ["zzcrême"])):
            note = {"title": f"Dessert {number}", "hashtags": tags}
            httpx.put(f"{service.api}/notes/dessert-{number}", json=note, timeout=30).raise_for_status()
        used = get(service, "hashtags?limit=200")
        person = visit()
        page = person.open("#vocabulary")
        expect(page.locator("#used tr")).to_have_count(len(used["items"]))
        shown = [row.split("\t")[:2] for row in page.locator("#used tr").all_inner_texts()]
        assert shown == [[f"#{item['tag']}", str(item["notes"])] for item in used["items"]]
        trends = get(service, "hashtags/trending?limit=10")["items"]
        assert [text.split()[0] for text in page.locator("#trends li").all_inner_texts()] == [
            f"#{trend['tag']}" for trend in trends
        ]

        page.fill("#prefix", "#ZZ")
        expect(page.locator("#used tr")).to_have_count(5)
        expect(page.locator("#merges li")).to_have_count(3)
        assert sorted(page.locator("#merges li > span").all_inner_texts()) == [
            "#zzcreme → #zzcrême the same but for accents; 1 note",
            "#zzcrème → #zzcrême the same but for accents; 1 note",
            "#zzpuding → #zzpudding one letter differs; 1 note",
        ]
        page.click("[aria-label='Suggest #zzpudding in the place of #zzpuding']")
        expect(page.locator("#rules li")).to_have_text(["#zzpuding suggested as #zzpuddingRemove"])
        expect(page.locator("#merges li")).to_have_count(2)
        expect(page.locator("#rules-title")).to_be_focused()

        page.fill("#rule-tag", "zzpudding")
        page.fill("#rule-target", "ZZ Puding")
        page.click("text=Add rule")
        expect(page.locator("#rule-notice")).to_contain_text("These hashtags would stand for each other.")
        page.select_option("#rule-kind", "block")
        expect(page.locator("#rule-target")).to_be_hidden()
        page.click("text=Add rule")
        expect(page.locator("#rules li")).to_have_count(2)
        expect(page.locator("#rule-notice")).to_be_hidden()
        assert get(service, "hashtags/rules")["items"] == [
            {"tag": "zzpudding", "blocked": True},
            {"tag": "zzpuding", "alias_of": "zzpudding"},
        ]
        for _ in range(2):
            page.click("#rules li >> nth=0 >> text=Remove")
            expect(page.locator("#rules-title")).to_be_focused()
        expect(page.locator("#rules")).to_contain_text("None yet")
        assert get(service, "hashtags/rules")["items"] == []
        assert len(person.refusals) == 1

    def test_says_why_hashtags_could_be_one(self, visit):
        pairs = {
            ("crème_brulee", "creme_brulee"): "the same but for accents",
            ("24_7", "247"): "the same but for separators",
            ("bus", "buses"): "one may be the plural",
            ("movies", "movie"): "one may be the plural",
            ("receipt", "reciept"): "one letter differs",
            ("sourdough", "sourdoug"): "one letter differs",
            ("sourdough", "saurdough"): "one letter differs",
            ("ourdough", "sourdough"): "one letter differs",
            ("recap2024", "recap2025"): None,
            ("cat", "car"): None,
            ("walking", "talkinh"): None,
            ("東京", "京都"): None,
        }
        listed = [[{"tag": more, "notes": 9}, {"tag": less, "notes": 2}] for more, less in pairs]
        page = visit().open("#vocabulary")
        ask = "lists => import('/vocabulary.js').then(({ mergeable }) => lists.map(list => mergeable(list)))"

        assert page.evaluate(ask, listed) == [
            [{"tag": less, "notes": 2, "into": more, "why": why}] if why else [] for (more, less), why in pairs.items()
        ]

    def test_asks_for_a_key_that_may_change_rules(self, visit, service):
        person = visit()
        page = person.page

        def guard(route: Route) -> None:
            if route.request.method == "GET" or route.request.headers.get("authorization") == "Bearer admin":
                route.continue_()
            else:
                refuse(route, 403, "forbidden")

        page.route("**/hashtags/*", guard)
        person.open("#vocabulary")
        page.fill("#rule-tag", "zzspam")
        page.select_option("#rule-kind", "block")
        page.click("text=Add rule")
        expect(page.locator("#key-title")).to_have_text("This key is not enough")
        page.fill("#key", "admin")
        page.press("#key", "Enter")

        expect(page.locator("#rules li")).to_have_count(1)
        page.click("#rules >> text=Remove")
        expect(page.locator("#rules")).to_contain_text("None yet")


class TestExperiments:
    """Of answers as the contract shows them: what a person decides by has to be what the API said."""

    @pytest.fixture
    def person(self, visit) -> Visit:
        return self.told(visit())

    @staticmethod
    def told(person: Visit) -> Visit:
        [turn] = EXAMPLES["learning"]["turns"]
        refused = turn | {"name": "turn-0001", "outcome": "refused", "why": "Recall@100 is not surely better"}
        over = EXPERIMENT | {"name": "spread", "state": "shipped", "shipped": "B", "ended": "2026-05-01T09:30:00Z"}
        person.answer("**/experiments", 200, {"items": [EXPERIMENT, over]})
        person.answer("**/experiments/winter-model", 200, EXPERIMENT)
        person.answer("**/experiments/spread", 200, over)
        person.answer("**/learning", 200, {"turns": [turn, refused]})
        return person

    def test_shows_the_verdict_what_to_type_and_the_figures_with_their_intervals(self, person):
        report = EXPERIMENT["report"]
        page = person.open("#experiments")
        card = page.locator("#running article")

        expect(card.locator(".verdict.better")).to_have_text(report["verdict"])
        expect(card.locator("pre")).to_have_text("notellm experiment ship winter-model B")
        expect(card).to_contain_text("Requests have to give its rules (diversity=0.3) from then on.")
        rows = card.locator("table").nth(0).locator("tbody tr")
        expect(rows.nth(1)).to_contain_text("404,120")
        expect(rows.nth(1)).to_contain_text("4.63 % to 4.87 %")
        expect(card.locator("table").nth(1)).to_contain_text("+2.1 % to +14.3 %")
        # On a scale as wide as the farther bound on both sides, zero is in the middle.
        change = card.locator("table").nth(1).locator("svg")
        ends = [float(change.locator(".interval").get_attribute(name) or 0) for name in ("x1", "x2")]
        assert ends == [pytest.approx(80 + 76 * share / 0.143, abs=0.1) for share in (0.021, 0.143)]
        assert float(change.locator(".zero").get_attribute("x1") or 0) == 80
        expect(card.locator("table").nth(2)).to_contain_text("−0.09 to +0.07 points")

        page.click("text=spread: shipped B 2026-05-01 09:30")
        expect(page.locator("#over .verdict")).to_have_text(report["verdict"])
        expect(page.locator("#over pre")).to_have_count(0)

    def test_shows_where_a_turn_stands_and_why_one_was_refused(self, person):
        page = person.open("#experiments")
        last = page.locator("#turns article")

        expect(last.locator(".verdict")).to_contain_text("Waits for a worker of the new model")
        assert last.locator(".steps .state").all_inner_texts() == ["done", "waits"]
        expect(last.locator("table")).to_contain_text("+0.37 to +7.81 points")
        expect(last.locator("table")).to_contain_text("1,180 pairs (also of single readers)")
        expect(last).to_contain_text(
            "12 hashtags, 3.1 % of all that the newest notes carry (#cherryblossom2026 and others)"
        )
        page.click("text=turn-0001: refused")
        expect(page.locator("#turns details .verdict.refused")).to_have_text(
            "Refused before any reader saw it: Recall@100 is not surely better. 0a9b8c7d6e5f4a3b goes on serving."
        )

    def test_leaves_what_somebody_opened_open_until_something_changes(self, person):
        person.page.clock.install()
        page = person.open("#experiments")
        page.click("text=turn-0001: refused")
        with page.expect_response("**/experiments/winter-model"):
            page.clock.run_for(10_000)
        expect(page.locator("#turns details[open]")).to_have_count(1)
        person.answer("**/learning", 200, {"turns": []})
        page.clock.run_for(10_000)
        expect(page.locator("#turns .none")).to_contain_text("No turn yet.")

    def test_says_what_to_do_next(self, visit):
        report = EXPERIMENT["report"]
        slow = [report["guards"][2] | {"says": "its lists take at least 12% longer"}]
        stop, export = "notellm experiment stop winter-model", "notellm events export --to ./data/events --reports"
        cases = [
            (report, False, "notellm experiment ship winter-model B"),
            (report | {"guards": slow}, False, stop),
            (report | {"finding": "no_difference"}, False, export),
            (report | {"finding": "no_difference", "guards": slow}, False, stop),
            (report | {"finding": "too_early"}, False, export),
            (report | {"finding": "worse"}, False, stop),
            (report | {"finding": "broken_split"}, False, stop),
            (report, True, "notellm learn"),
            (None, False, export),
        ]
        page = visit().open("#experiments")
        ask = """([one, cases]) => import('/experiments.js').then(({ nextStep }) =>
          cases.map(([report, learned]) => nextStep(one, report, learned).command))"""

        assert page.evaluate(ask, [EXPERIMENT, [case[:2] for case in cases]]) == [command for *_, command in cases]

    def test_has_no_fault_that_axe_knows_with_everything_open(self, visit):
        page = self.told(visit(width=390, scheme="dark")).open("#experiments")
        expect(page.locator("#over summary")).to_be_visible()
        for summary in page.locator("summary:visible").all():
            summary.click()
        expect(page.locator("#over .verdict")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.evaluate("scrollTo(0, 0)")
        TestEveryView.has_no_fault(page)


class TestService:
    def test_shows_the_figures_of_status(self, visit, service):
        httpx.put(f"{service.api}/notes/fresh-1?wait=10", json={"title": "Fresh tea"}, timeout=30)
        page = visit().open("#service")
        expect(page.locator("#figures")).to_be_visible()

        now = status(service)
        assert page.locator("#notes-live").inner_text() == f"{now['notes']['live']:,}"
        assert page.locator("#notes-searchable").inner_text() == f"{now['notes']['searchable']:,}"
        assert page.locator("#notes-failed").inner_text() == "0"
        assert page.locator("#queue-depth").inner_text() == "0"
        assert page.locator("#fingerprint").inner_text() == now["model"]
        assert page.locator("#shards-ok").inner_text() == "2 of 2"
        assert page.locator("#generation").inner_text() == str(now["index"]["generation"])
        assert page.locator("#shards tr").count() == 2
        for shard, row in zip(now["index"]["shards"], page.locator("#shards tr").all(), strict=True):
            assert row.inner_text().split("\t")[:2] == [str(shard["shard"]), f"{shard['notes']:,}"]
        for quantile in ("p50", "p99"):
            shown = page.locator(f"#{quantile}").inner_text().split()
            seconds = float(shown[0]) / (1000 if shown[1] == "ms" else 1)
            assert seconds == pytest.approx(now["freshness_s"][quantile], abs=0.05)

    def test_polls_every_two_seconds_and_only_while_it_is_seen(self, visit, service):
        person = visit()
        page = person.page
        page.clock.install()
        person.open("#service")
        expect(page.locator("#figures")).to_be_visible()
        for _ in range(3):
            with page.expect_response("**/status"):
                page.clock.run_for(2000)
        page.click("text=The charts as a table")
        expect(page.locator("#samples tr")).to_have_count(4)
        live = f"{status(service)['notes']['live']:,}"
        assert [row.split("\t")[5] for row in page.locator("#samples tr").all_inner_texts()] == [live] * 4
        assert (
            page.locator("#notes-chart")
            .get_attribute("aria-label")
            .startswith(f"Notes: searchable now {live}, between")
        )
        assert page.locator("#notes-chart path").count() == 3

        page.click("text=Write")
        expect(page.locator("#draft")).to_be_visible()
        before = len(person.asked)
        page.clock.run_for(20_000)
        assert len(person.asked) == before

    def test_shows_recall_and_delta_where_they_are_known(self, visit, service):
        person = visit()
        now = status(service)
        plain = [
            {name: value for name, value in one.items() if name not in ("recall", "delta")}
            for one in now["index"]["shards"]
        ]
        known = [one | {"recall": recall, "delta": 1200} for one, recall in zip(plain, (0.981, 0.9634), strict=True)]
        person.answer("**/status", 200, now | {"index": now["index"] | {"shards": known}})
        page = person.open("#service")
        expect(page.locator("#recall")).to_contain_text("96.3 %")
        assert page.locator("#shards-head").inner_text().split("\t")[:4] == ["Shard", "Notes", "Delta", "Recall"]
        assert page.locator("#shards tr").first.inner_text().split("\t")[2:4] == ["1,200", "98.1 %"]

        person.answer("**/status", 200, now | {"index": now["index"] | {"shards": plain}})
        page = person.open("#service")
        expect(page.locator("#recall-hint")).to_contain_text("Recall is not measured here yet.")
        assert page.locator("#shards-head").inner_text().split() == ["Shard", "Notes", "Generation", "Recipe"]

    def test_draws_what_readers_clicked_and_tells_of_a_model_that_was_taken_back(self, visit, service):
        person = visit()
        watch = {"model": "6f1d0c2ab3e49587", "before": "0a9b8c7d6e5f4a3b", "state": "taken_back", "blocked": None}
        watch |= {"since": "2026-05-04T09:30:00Z", "ended": "2026-05-04T09:41:00Z", "reason": "clicks"}
        detail = "2.10% of items shown are clicked, where 8.32% were before"
        person.answer("**/status", 200, status(service) | {"watch": watch | {"detail": detail}})
        rates = [
            {"shown": 4000, "clicked": 333, "rate": 0.0832, "low": 0.07, "high": 0.1},
            {"shown": 900, "clicked": 19, "rate": 0.021, "low": None, "high": None},
        ]
        sources = [
            {"scenario": "related", "model": model, "arm": "", **rate}
            for model, rate in zip(("0a9b8c7d", "6f1d0c2a"), rates, strict=True)
        ]
        person.answer("**/outcomes", 200, {"sources": sources, "positions": [{"position": 1} | rates[0]]})

        page = person.open("#service")

        expect(page.locator("#watch")).to_have_text(
            f"6f1d0c2ab3e49587 was taken back for 0a9b8c7d6e5f4a3b at 2026-05-04 09:41 UTC: {detail}."
        )
        drawn = page.locator("#outcomes tr")
        expect(drawn).to_have_count(3)
        expect(page.locator("#outcomes .interval")).to_have_count(2)
        dots = [float(dot.get_attribute("cx") or 0) for dot in page.locator("#outcomes circle").all()]
        assert dots == [pytest.approx(4 + 152 * one) for one in (0.832, 0.21, 0.832)]

    def test_names_what_is_not_as_it_should_be(self, visit, service):
        person = visit()
        now = status(service)
        [first, *_] = now["index"]["shards"]
        index = now["index"] | {"shards": [first | {"fingerprint": "other"}], "shards_ok": 1}
        person.answer("**/status", 200, now | {"index": index, "freshness_s": {"p50": None, "p99": None}})

        page = person.open("#service")

        expect(page.locator("#shards")).to_contain_text("another one")
        expect(page.locator("#shards")).to_contain_text("1 shard without an answer: check its indexer.")
        expect(page.locator("#freshness-hint")).to_contain_text("publish a note")


class TestKeys:
    @pytest.fixture
    def locked(self, visit) -> Visit:
        """A page on a service that wants the key `sesame`, and for reading tags another one."""
        person = visit()

        def guard(route: Route) -> None:
            given = route.request.headers.get("authorization", "")
            if not given.startswith("Bearer sesame"):
                refuse(route, 401, "unauthorized")
            elif "tags" in route.request.url and given != "Bearer sesame-tags":
                refuse(route, 403, "forbidden")
            else:
                route.continue_()

        person.page.route(re.compile("/(notes/.*|status)$"), guard)
        return person

    def test_are_asked_for_and_sent_and_kept_nowhere(self, locked, service):
        page = locked.open("#explore/travel-01")
        dialog = page.locator("#key-dialog")
        expect(dialog).to_contain_text("This service asks for a key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("It does not know the one you gave.")
        page.keyboard.type(" sesame ")
        page.keyboard.press("Enter")

        shows_note(page, get(service, "notes/travel-01")["title"])
        expect(dialog).to_be_hidden()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert "sesame" not in page.content() + page.url
        assert page.locator("#key").input_value() == ""
        page.reload()
        expect(dialog).to_be_visible()

    def test_that_may_not_do_something_are_asked_for_again(self, locked):
        page = locked.open("#service")
        page.fill("#key", "sesame")
        page.click("text=Use key")
        expect(page.locator("#figures")).to_be_visible()
        page.click("text=Explore")
        search(page, "tea for two")

        expect(page.locator("#key-dialog")).to_contain_text("This key is not enough")
        page.fill("#key", "sesame-tags")
        page.click("text=Use key")
        shows_note(page, "tea for two")
        page.click("text=Forget key")
        search(page, "travel-01")
        expect(page.locator("#key-dialog")).to_contain_text("Whoever runs the service can give you one.")

    def test_need_not_be_given(self, locked, service):
        page = locked.open("#service")
        expect(page.locator("#key-dialog")).to_be_visible()
        page.keyboard.press("Escape")

        expect(page.locator("#key-dialog")).to_be_hidden()
        expect(page.locator("#service-notice")).to_contain_text("The service asks for a key.")
        page.click("text=Explore")
        expect(page.locator("#explore-notice")).to_contain_text("The service asks for a key.")
        expect(page.locator("#key-dialog")).to_be_hidden()
        page.click("text=Enter a key")
        page.fill("#key", "sesame")
        page.click("text=Use key")
        expect(page.locator("#start")).to_be_visible()
        expect(page.locator("#explore-notice")).to_be_hidden()

    def test_that_could_not_travel_are_not_sent(self, locked):
        page = locked.open("#service")
        before = len(locked.asked)
        page.fill("#key", "сезам")
        page.click("text=Use key")

        expect(page.locator("#key-dialog")).to_be_visible()
        assert len(locked.asked) == before


def refuse(route: Route, refused: int, code: str) -> None:
    route.fulfill(status=refused, json={"error": {"code": code, "message": code, "request_id": "r-1"}})


class TestKeyboard:
    def test_is_enough_to_find_and_to_walk(self, visit, service):
        page = visit().open("#service")
        expect(page.locator("#figures")).to_be_visible()
        page.keyboard.press("/")
        expect(page.locator("#query")).to_be_focused()
        page.keyboard.type("travel-01")
        page.keyboard.press("Enter")
        shows_note(page, get(service, "notes/travel-01")["title"])
        expect(page.locator("#note-title")).to_be_focused()

        results = page.locator("#results .result a")
        for pressed, at in (("j", 0), ("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("k", 0), ("j", 1)):
            page.keyboard.press(pressed)
            expect(results.nth(at)).to_be_focused()
        second = results.nth(1).inner_text()
        page.keyboard.press("Enter")
        shows_note(page, second)
        page.keyboard.press("/")
        page.keyboard.press("End")
        page.keyboard.press("ArrowDown")
        expect(results.nth(0)).to_be_focused()

    def test_is_enough_to_write(self, visit):
        page = visit().open("#write")
        page.focus("#draft-title")
        page.keyboard.type("Latte art for the impatient")
        expect(page.locator("#suggested-hashtags button").first).to_be_visible()
        page.keyboard.press("Tab")
        page.keyboard.type("Pour lower, later.")
        page.keyboard.press("Tab")
        page.keyboard.type("milk,jug ")
        page.keyboard.press("Backspace")
        expect(page.locator("#draft-hashtags li")).to_have_text(["#milk ×"])
        expect(page.locator("#draft-hashtag")).to_be_focused()
        expect(page.locator("#suggestions")).not_to_have_attribute("aria-busy", "true")
        page.locator("#suggested-hashtags button").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#draft-hashtags li")).to_have_count(2)
        expect(page.locator("#suggestions")).not_to_have_attribute("aria-busy", "true")
        assert page.evaluate("document.activeElement.closest('#suggested-hashtags') !== null")
        page.focus("#draft-content")
        page.keyboard.press("Control+Enter")

        shows_note(page, "Latte art for the impatient")

    def test_letters_in_a_field_are_letters(self, visit):
        page = visit().open("#explore/travel-01")
        expect(page.locator("#results .result")).to_have_count(10)
        page.fill("#query", "")
        page.locator("#query").press_sequentially("jk/")

        expect(page.locator("#query")).to_have_value("jk/")
        expect(page.locator("#query")).to_be_focused()

    def test_sees_where_it_is_and_can_skip_what_repeats(self, visit):
        page = visit().open("#explore/travel-01")
        expect(page.locator("#results .result")).to_have_count(10)
        page.click("text=Refine")
        page.locator("#skip").focus()
        expect(page.locator("#skip")).to_be_in_viewport()
        seen = set()
        for _ in range(24):
            page.keyboard.press("Tab")
            where, width = page.evaluate(
                """() => {
                  const at = document.activeElement;
                  const ringed = at.closest('.tokens, .result') ?? at;
                  return [at.id || at.textContent, parseFloat(getComputedStyle(ringed).outlineWidth)];
                }"""
            )
            assert width >= 2, where
            seen.add(where)
        assert {"query", "filter-category", "diversity", "debias", "limit", "exclude-author", "explain"} <= seen
        page.locator("#skip").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        assert page.url.endswith("#explore/travel-01")


class TestEveryView:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_has_no_fault_that_axe_knows_and_nothing_beyond_the_edge(self, visit, width, scheme):
        """axe-core checks contrast as it is drawn, names, roles, the order of headings and more: WCAG 2.2 A and AA."""
        person = visit(width=width, scheme=scheme)
        for place in VIEWS:
            page = person.open(place)
            self.settle(page, place)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.evaluate("scrollTo(0, 0)")  # what lies half under the header would count as too small to hit
            self.has_no_fault(page)
        page.click("text=The charts as a table")
        self.has_no_fault(page)
        assert person.refusals == []

    def test_of_trouble_and_of_the_key_dialog_is_no_worse(self, visit):
        for scheme in ("light", "dark"):
            person = visit(width=390, scheme=scheme)
            page = person.open("#explore/nothing-99")
            expect(page.locator("#explore-notice")).to_be_visible()
            self.has_no_fault(page)
            person.refuse("**/status", 401, "unauthorized")
            page = person.open("#service")
            expect(page.locator("#key-dialog")).to_be_visible()
            self.has_no_fault(page)

    def test_has_a_title_and_marks_its_tab(self, visit):
        page = visit().open()
        for name in ("Explore", "Write", "Hashtags", "Experiments", "Service"):
            page.click(f".views >> text={name}")
            expect(page).to_have_title(f"{name} – NoteLLM")
            expect(page.locator("[aria-current=page]")).to_have_text(name)
            assert page.locator("main > section:visible").count() == 1

    @staticmethod
    def settle(page: Page, place: str) -> None:
        if place == "#write":
            page.fill("#draft-title", "Latte art")
            expect(page.locator("#suggested-category button")).to_be_visible()
            page.click("#suggested-hashtags button >> nth=0")
        shown = {
            "#write": "#draft-related .result >> nth=0",
            "#service": "#figures",
            "#explore": "#examples",
            "#vocabulary": "#used tr >> nth=9",
            "#experiments": "#turns .none",
        }
        expect(page.locator(shown.get(place, "#results .result >> nth=0"))).to_be_visible()
        expect(page.locator("[aria-busy]")).to_have_count(0)

    @staticmethod
    def has_no_fault(page: Page) -> None:
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}})
        assert found.violations_count == 0, found.generate_report()


class TestTheReference:
    def test_shows_every_operation_and_tries_one_without_another_host(self, visit, service):
        person = visit()
        page = person.open("docs")

        operations = get(service, "openapi.json")["paths"].values()
        expect(page.locator(".opblock")).to_have_count(sum(map(len, operations)))
        block = page.locator("#operations-default-get_status_status_get, .opblock:has-text('/status')").first
        block.click()
        block.locator("button.execute").click()
        expect(block.locator(".live-responses-table")).to_contain_text(get(service, "status")["model"])
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
        assert person.refusals == []


def test_the_pages_are_served_to_head_and_from_a_cache(service):
    plain = {"Accept-Encoding": "identity"}
    page = httpx.get(f"{service.api}/", headers=plain)
    head = httpx.head(f"{service.api}/", headers=plain)
    again = httpx.get(f"{service.api}/", headers=plain | {"If-None-Match": page.headers["etag"]})

    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(page.content)))
    assert (again.status_code, again.content) == (304, b"")
