"""Who answers a reader in an experiment, by which rules, and what the answer says of it."""

import pytest
from support.gateway import MemoryGateway

from model.note import Note
from service.experiments.assignment import Assignment
from service.recommend.active_model import ActiveModel
from service.recommend.memory import FINGERPRINT
from service.recommend.recommender import Recommender
from service.store.experiments.records import Arm

OTHER = "0000000000000002"
ARMS = {"amy": Arm("A", FINGERPRINT, {}), "bob": Arm("B", OTHER, {"min_score": 0.9, "duplicates": "keep"})}


class Gateway(MemoryGateway):
    """Its notes are searched for by two models, and two readers are in the experiment ``spread``."""

    def __init__(self) -> None:
        super().__init__()
        self.app.state.recommender = ActiveModel(self._active, FINGERPRINT, self._recommender, self._assigned)

    async def _active(self) -> str:
        return FINGERPRINT

    def _recommender(self, fingerprint: str) -> Recommender:
        return Recommender(*self.seams, self.settings, fingerprint)

    def _assigned(self, reader: str) -> Assignment | None:
        return Assignment("spread", ARMS[reader]) if reader in ARMS else None


@pytest.fixture
async def gateway() -> Gateway:
    gateway = Gateway()
    texts = {"n1": "temples of kyoto", "n2": "temples of kyoto by bus", "n3": "kyoto soup", "n4": "lentil soup"}
    await gateway.publish(*(Note(id_, text) for id_, text in texts.items()))
    return gateway


@pytest.fixture
async def client(gateway):
    async with gateway.client() as client:
        yield client


def said(answer) -> tuple[str, str | None, str | None]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["model"], body.get("experiment"), body.get("arm")


ACTIVE, IN_A, IN_B = (FINGERPRINT, None, None), (FINGERPRINT, "spread", "A"), (OTHER, "spread", "B")


async def test_without_a_reader_or_an_experiment_the_answer_is_what_it_was(client):
    for headers in ({}, {"X-Reader-ID": "zoe"}):
        answer = await client.get("/notes/n1/related", headers=headers)

        assert said(answer) == ACTIVE
        assert {"experiment", "arm"}.isdisjoint(answer.json())


async def test_every_list_and_the_suggestions_are_of_the_readers_arm_and_say_so(client):
    for reader, expected in (("amy", IN_A), ("bob", IN_B)):
        headers = {"X-Reader-ID": reader}
        assert said(await client.get("/notes/n1/related", headers=headers)) == expected
        assert said(await client.get(f"/notes/n1/related?for_user={reader}")) == expected
        assert said(await client.post("/notes/n1/related", json={}, headers=headers)) == expected
        assert said(await client.post("/related", json={"positives": ["n1"]}, headers=headers)) == expected
        assert said(await client.get("/search?q=soup", headers=headers)) == expected
        assert said(await client.post("/search", json={"q": "soup", "for_user": reader})) == expected
        assert said(await client.post("/notes/tags", json={"title": "soup"}, headers=headers)) == expected


async def test_for_user_goes_before_the_header_and_the_header_may_be_percent_encoded(client):
    assert said(await client.get("/notes/n1/related?for_user=amy", headers={"X-Reader-ID": "bob"})) == IN_A
    assert said(await client.get("/notes/n1/related", headers={"X-Reader-ID": "%62ob"})) == IN_B


async def test_in_a_batch_each_request_is_of_its_readers_arm(client):
    requests = [{"note_id": "n1"}, {"note_id": "n1", "for_user": "amy"}, {"positives": ["n1"], "for_user": "bob"}]
    answer = await client.post("/related/batch", json={"requests": requests})
    with_header = await client.post("/related/batch", json={"requests": requests}, headers={"X-Reader-ID": "bob"})

    def arms(batch) -> list[tuple[str, str | None, str | None]]:
        return [(one["model"], one.get("experiment"), one.get("arm")) for one in batch.json()["answers"]]

    assert arms(answer) == [ACTIVE, IN_A, IN_B]
    assert arms(with_header) == [IN_B, IN_A, IN_B]


async def test_the_rules_of_an_arm_hold_where_the_request_gives_none(client):
    async def found(reader: str, rules: str = "") -> list[str]:
        answer = await client.get(f"/notes/n1/related?for_user={reader}{rules}")
        return [item["note_id"] for item in answer.json()["items"]]

    everything = await found("amy")
    assert set(everything) == {"n2", "n3", "n4"}
    assert await found("bob") == []
    assert await found("bob", "&min_score=-1") == everything
    assert await found("bob", "&k=2") == []


async def test_other_routes_are_of_the_active_model(client):
    headers = {"X-Reader-ID": "bob"}

    assert (await client.get("/status", headers=headers)).json()["model"] == FINGERPRINT
    assert (await client.post("/v1/embeddings", json={"input": "soup", "model": "x"}, headers=headers)).json()[
        "model"
    ] == FINGERPRINT


@pytest.mark.parametrize("header", ["", "x" * 1537, "two words", "caf\u00e9"])
async def test_a_header_that_names_no_reader_is_refused_without_repeating_it(client, header):
    answer = await client.get("/notes/n1/related", headers={"X-Reader-ID": header.encode("latin-1")})

    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("X-Reader-ID is 1 to 1536 visible ASCII characters")
    assert not header or header not in answer.text


@pytest.mark.parametrize(
    ("header", "method", "path", "body"),
    [
        ("X-Reader-ID", "GET", "/notes/n1/related?for_user=amy", None),
        ("X-Reader-ID", "POST", "/related/batch", {"requests": [{"note_id": "n1"}]}),
        ("X-Reader-ID", "PUT", "/notes/n1", {"title": "t"}),
        ("X-Reader-ID", "PATCH", "/notes/n1", {"title": "t"}),
        ("X-Answer-ID", "PUT", "/notes/n1", {"title": "t"}),
        ("X-Answer-ID", "PATCH", "/notes/n1", {"title": "t"}),
    ],
)
async def test_a_malformed_header_is_a_mistake_of_the_whole_request(client, header, method, path, body):
    for malformed in ("", "two words", "x" * 1537):
        answer = await client.request(method, path, json=body, headers={header: malformed})

        assert answer.status_code == 422
        assert answer.json()["error"]["message"].startswith(f"{header} is 1 to ")


async def test_the_log_says_which_arm_answered_and_how_long_it_took(gateway, client):
    await client.get("/notes/n1/related", headers={"X-Reader-ID": "bob"})
    await client.post("/related/batch", json={"requests": [{"note_id": "n1", "for_user": "amy"}]})
    await client.get("/notes/n1/related", headers={"X-Reader-ID": "zoe"})
    await gateway.buffer.flush()

    assert [(one.experiment, one.arm, one.model) for one in gateway.served.kept] == [
        ("spread", "B", OTHER),
        ("spread", "A", FINGERPRINT),
        ("", "", FINGERPRINT),
    ]
    assert all(0 < one.seconds < 10 for one in gateway.served.kept)


async def test_an_error_of_ours_counts_for_the_arm_and_one_of_the_caller_does_not(gateway, client):
    gateway.searcher.down.update(range(2))
    assert (await client.get("/notes/n1/related", headers={"X-Reader-ID": "bob"})).status_code == 503
    batch = await client.post("/related/batch", json={"requests": [{"note_id": "n1", "for_user": "amy"}]})
    assert batch.json()["answers"][0]["status"] == 503
    assert (await client.get("/notes/n1/related", headers={"X-Reader-ID": "zoe"})).status_code == 503
    assert (await client.get("/notes/none/related", headers={"X-Reader-ID": "bob"})).status_code == 404
    await gateway.buffer.flush()

    assert [(one.scenario, one.arm, [*one.ids]) for one in gateway.served.kept] == [
        ("failed", "B", ["index_unavailable"]),
        ("failed", "A", ["index_unavailable"]),
    ]
