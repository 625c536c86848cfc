"""What the routes put into the log of answers."""

import pytest
from support.gateway import MemoryGateway

from model.note import Note
from service.recommend.memory import FINGERPRINT
from service.store.attribution.answers import ServedAnswer
from service.store.attribution.memory import MemoryAnswerLog
from service.store.attribution.readers import name_of


@pytest.fixture
async def gateway() -> MemoryGateway:
    gateway = MemoryGateway()
    await gateway.publish(*(Note(f"n{number}", f"harbor tram {number}", hashtags=("tram",)) for number in range(4)))
    return gateway


async def logged(gateway: MemoryGateway) -> list[ServedAnswer]:
    await gateway.buffer.flush()
    return gateway.served.kept


SEEDS = {"positives": ["n1", "n2"]}
ASKED = {
    "related": ("GET", "/notes/n1/related?k=2&for_user=u%2F1", None),
    "by rules": ("POST", "/notes/n1/related", {"k": 2, "for_user": "u/1"}),
    "seeds": ("POST", "/related", SEEDS | {"for_user": "u/1"}),
    "search": ("GET", "/search?q=tram&for_user=u%2F1", None),
    "search by rules": ("POST", "/search", {"q": "tram", "for_user": "u/1"}),
    "tags": ("POST", "/notes/tags", {"title": "harbor tram"}),
}


@pytest.mark.parametrize("name", ASKED)
async def test_every_answer_is_logged_as_it_was_given(gateway, name):
    method, path, body = ASKED[name]
    async with gateway.client() as client:
        answer = (await client.request(method, path, json=body, headers={"X-Reader-ID": "u%2F1"})).json()

    [record] = await logged(gateway)

    assert record.answer_id == answer["answer_id"]
    assert record.model == FINGERPRINT
    assert record.scenario == name.split()[0].replace("seeds", "related").replace("by", "related")
    assert record.reader == name_of("u/1", MemoryAnswerLog.key)
    if name == "tags":
        assert list(record.ids) == [tag["tag"] for tag in answer["hashtags"]] != []
        assert record.category == answer["category"]["name"]
    else:
        assert list(record.ids) == [item["note_id"] for item in answer["items"]] != []
        assert record.note_id == answer.get("note_id", "")


async def test_a_batch_is_an_answer_for_each_that_was_given(gateway):
    requests = [{"note_id": "n1", "for_user": "a"}, {"note_id": "never"}, SEEDS]
    async with gateway.client() as client:
        response = await client.post("/related/batch", json={"requests": requests}, headers={"X-Reader-ID": "b"})

    answers = [one for one in response.json()["answers"] if one["status"] == 200]
    records = {record.answer_id: record for record in await logged(gateway)}

    assert [records[one["answer_id"]].reader for one in answers] == [name_of(one, MemoryAnswerLog.key) for one in "ab"]
    assert [[*records[one["answer_id"]].ids] for one in answers] == [
        [i["note_id"] for i in one["items"]] for one in answers
    ]


async def test_parameters_have_one_digest_whoever_asks_and_however(gateway):
    async with gateway.client() as client:
        for rules in ("k=2", "k=2&for_user=u", "k=2&explain=1&debias=0", "k=3", "k=2&category=Travel"):
            await client.get(f"/notes/n1/related?{rules}")
        await client.post("/notes/n1/related", json={"k": 2})

    first, *others = [record.parameters for record in await logged(gateway)]

    assert [digest == first for digest in others] == [True, True, False, False, True]


async def test_a_write_that_names_the_answer_says_which_hashtags_its_note_carries(gateway):
    named = {"X-Answer-ID": "0123456789abcdef.t.m", "X-Reader-ID": "u"}
    async with gateway.client() as client:
        await client.put("/notes/w", json={"title": "a", "hashtags": ["Kyoto", "sea"]}, headers=named)
        await client.patch("/notes/w", json={"hashtags": ["ramen"]}, headers=named)
        await client.put("/notes/v", json={"title": "a"})
        assert (await client.put("/notes/w", json={"title": ""}, headers=named)).status_code == 422

    records = await logged(gateway)

    assert [(one.scenario, one.answer_id, one.note_id, [*one.ids]) for one in records] == [
        ("written", named["X-Answer-ID"], "w", ["Kyoto", "sea"]),
        ("written", named["X-Answer-ID"], "w", ["ramen"]),
    ]
    assert {one.reader for one in records} == {name_of("u", MemoryAnswerLog.key)}


async def test_what_is_refused_is_no_answer(gateway):
    async with gateway.client() as client:
        for path in ("/notes/never/related", "/notes/n1/related?k=0"):
            assert (await client.get(path)).status_code in (404, 422)

    assert await logged(gateway) == []
