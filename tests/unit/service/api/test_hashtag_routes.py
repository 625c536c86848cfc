"""The routes of hashtags over HTTP, and what their rules do to suggestions."""

import pytest
from support.bodies import HOSTILE, MARK
from support.gateway import MemoryGateway

from model.note import Note
from service.contract.hashtags import HashtagsOut, RulesOut, TrendsOut
from service.recommend.recommender import Recommender
from service.store.interfaces import HashtagRule, Suggestion


@pytest.fixture
def gateway() -> MemoryGateway:
    return MemoryGateway(max_body_bytes=200_000)


@pytest.fixture
async def client(gateway):
    async with gateway.client() as client:
        yield client


def is_error(answer, status: int, code: str) -> bool:
    assert MARK not in answer.text
    assert len(answer.content) <= 2048
    return (answer.status_code, answer.json()["error"]["code"]) == (status, code)


class TestLists:
    async def test_have_the_shape_of_the_contract_page_by_page(self, gateway, client):
        await gateway.publish(*(Note(f"n{n}", "harbor", hashtags=("Sea", f"t{n % 2}")) for n in range(5)))

        first = (await client.get("/hashtags?limit=2")).json()
        second = (await client.get("/hashtags", params={"after": first["next"]})).json()

        assert first["items"] == [
            {"tag": "sea", "notes": 5, "spellings": [{"spelling": "Sea", "notes": 5}]},
            {"tag": "t0", "notes": 3, "spellings": [{"spelling": "t0", "notes": 3}]},
        ]
        assert ([item["tag"] for item in second["items"]], second["next"]) == (["t1"], None)
        assert HashtagsOut.model_validate(first).items[0].notes == 5

    async def test_take_a_prefix_in_any_spelling(self, gateway, client):
        await gateway.publish(Note("n", "harbor", hashtags=("Street Food", "sea")))

        answer = (await client.get("/hashtags", params={"prefix": "#Street-F"})).json()

        assert [item["tag"] for item in answer["items"]] == ["streetfood"]

    async def test_say_what_trends_and_by_how_much(self, gateway, client):
        await gateway.publish(*(Note(f"n{n}", "harbor", hashtags=("sea",)) for n in range(5)))

        answer = (await client.get("/hashtags/trending?days=1&limit=5")).json()

        assert answer == {"items": [{"tag": "sea", "notes": 5, "lift": 2.0}]}
        assert TrendsOut.model_validate(answer)

    @pytest.mark.parametrize(
        "path",
        [
            *(f"/hashtags?limit={limit}" for limit in ("0", "1001", "x-mark-x", "", "1.5")),
            "/hashtags?prefix=" + "a" * 65,
            "/hashtags?after=" + "a" * 65,
            "/hashtags?x-mark-x=1",
            *(f"/hashtags/trending?days={days}" for days in ("0", "91", "x-mark-x")),
            "/hashtags/trending?limit=0",
            "/hashtags/trending?prefix=a",
            "/hashtags/rules?limit=1",
        ],
    )
    async def test_refuse_other_parameters(self, client, path):
        assert is_error(await client.get(path), 422, "invalid_request")

    @pytest.mark.parametrize("path", ["/hashtags", "/hashtags/trending", "/hashtags/rules"])
    async def test_need_the_store(self, gateway, client, path):
        gateway.hashtags.down = True

        assert is_error(await client.get(path), 503, "store_unavailable")


class TestRules:
    async def test_are_put_listed_replaced_and_removed(self, client):
        alias = await client.put("/hashtags/City%20Walks", json={"alias_of": "Urban Walk"})
        blocked = await client.put("/hashtags/%E6%97%85%E8%A1%8C", json={"blocked": True})
        listed = (await client.get("/hashtags/rules")).json()

        assert (alias.status_code, alias.json()) == (200, {"tag": "citywalk", "alias_of": "urban_walk"})
        assert (blocked.status_code, blocked.json()) == (200, {"tag": "旅行", "blocked": True})
        assert listed == {"items": [alias.json(), blocked.json()]}
        assert RulesOut.model_validate(listed)
        assert (await client.put("/hashtags/citywalk", json={"blocked": True})).json()["blocked"]
        for _ in range(2):
            assert (await client.delete("/hashtags/City-Walk")).status_code == 204
        assert (await client.get("/hashtags/rules")).json() == {"items": [blocked.json()]}

    async def test_of_hashtags_with_the_names_of_routes_are_rules_as_well(self, client):
        for name in ("trending", "rules"):
            assert (await client.put(f"/hashtags/{name}", json={"blocked": True})).status_code == 200
            assert (await client.delete(f"/hashtags/{name}")).status_code == 204

    async def test_that_lead_back_are_refused(self, client):
        await client.put("/hashtags/a", json={"alias_of": "b"})

        assert is_error(await client.put("/hashtags/b", json={"alias_of": "a"}), 409, "alias_loop")
        assert is_error(await client.put("/hashtags/c", json={"alias_of": "#C"}), 409, "alias_loop")

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"blocked": False},
            {"blocked": 1},
            {"blocked": None},
            {"alias_of": None},
            {"alias_of": "a", "blocked": True},
            {"alias_of": ""},
            {"alias_of": "<b>x-mark-x</b>"},
            {"alias_of": "a" * 65},
            {"blocked": True, "x-mark-x": 1},
            [],
        ],
    )
    async def test_are_one_of_two_things(self, client, body):
        assert is_error(await client.put("/hashtags/sea", json=body), 422, "invalid_request")
        assert (await client.get("/hashtags/rules")).json() == {"items": []}

    @pytest.mark.parametrize("body", HOSTILE)
    async def test_refuse_hostile_bodies(self, client, body):
        assert (await client.put("/hashtags/sea", content=body)).status_code == 422

    @pytest.mark.parametrize("tag", ["x-mark-x!", "%3Cb%3E", "%00", "%ff", "a" * 41, "..%20"])
    async def test_are_for_hashtags_and_there_is_none_for_anything_else(self, client, tag):
        assert is_error(await client.put(f"/hashtags/{tag}", json={"blocked": True}), 422, "invalid_request")
        assert (await client.delete(f"/hashtags/{tag}")).status_code == 204

    async def test_need_the_store(self, gateway, client):
        gateway.hashtags.down = True

        assert is_error(await client.put("/hashtags/a", json={"blocked": True}), 503, "store_unavailable")
        assert is_error(await client.delete("/hashtags/a"), 503, "store_unavailable")

    async def test_take_an_idempotency_key(self, client):
        for replayed in (None, "true"):
            answer = await client.put(
                "/hashtags/sea", content=b'{"blocked": true}', headers={"Idempotency-Key": "once"}
            )
            assert (answer.status_code, answer.headers.get("Idempotency-Replayed")) == (200, replayed)


class TestSuggestions:
    async def suggested(self, client, **wishes: object) -> dict[str, float]:
        answer = await client.post("/notes/tags", json={"title": "harbor tram", "max_hashtags": 10} | wishes)
        return {tag["tag"]: tag["score"] for tag in answer.json()["hashtags"]}

    async def test_obey_rules_at_once_and_until_they_are_removed(self, gateway, client):
        await gateway.publish(Note("n1", "harbor boat", hashtags=("sea", "Boats")))
        before = await self.suggested(client)
        assert set(before) == {"harbor", "tram", "sea", "Boats"}

        await client.put("/hashtags/harbors", json={"blocked": True})
        await client.put("/hashtags/tram", json={"alias_of": "Light Rail"})
        await client.put("/hashtags/boat", json={"alias_of": "sea"})
        after = await self.suggested(client)
        assert set(after) == {"light_rail", "sea"}
        assert after["light_rail"] == before["tram"]
        assert after["sea"] == before["sea"]
        await client.put("/hashtags/lightrail", json={"blocked": True})
        assert set(await self.suggested(client)) == {"sea"}

        for tag in ("harbor", "tram", "boat", "lightrail"):
            await client.delete(f"/hashtags/{tag}")
        assert await self.suggested(client) == before

    async def test_do_not_offer_what_the_draft_has_under_another_name(self, client):
        await client.put("/hashtags/tram", json={"alias_of": "harbor"})

        assert set(await self.suggested(client)) == {"harbor"}
        assert await self.suggested(client, hashtags=["Trams"]) == {}

    async def test_of_the_known_vocabulary_know_what_an_alias_stands_for(self, gateway, client):
        await gateway.publish(Note("n1", "harbor boat", hashtags=("Trams",)))
        await client.put("/hashtags/tram", json={"alias_of": "light_rail"})

        assert set(await self.suggested(client, vocabulary="known")) == {"light_rail"}
        await client.put("/hashtags/tram", json={"blocked": True})
        assert await self.suggested(client, vocabulary="known") == {}

    async def test_for_a_stored_note_obey_them_too(self, gateway, client):
        await gateway.publish(Note("n1", "harbor"))
        said = (("sea", 0.5), ("sun", 0.4), ("Seas", 0.3), ("tea", 0.2))
        gateway.store.suggest("n1", Suggestion(1, "", said))
        etag = (await client.get("/notes/n1")).headers["etag"]
        await client.put("/hashtags/sun", json={"blocked": True})
        await client.put("/hashtags/tea", json={"alias_of": "Green Tea"})
        await client.put("/hashtags/sea", json={"alias_of": "ocean"})

        answer = await client.get("/notes/n1", headers={"If-None-Match": etag})

        assert answer.json()["suggested_hashtags"] == [
            {"tag": "ocean", "score": 0.5},
            {"tag": "green_tea", "score": 0.2},
        ]

    async def test_obey_the_last_rules_while_the_store_is_away(self, gateway, client):
        await client.put("/hashtags/harbor", json={"blocked": True})
        gateway.store.down = gateway.hashtags.down = True

        assert set(await self.suggested(client)) == {"tram"}

    async def test_are_none_before_the_rules_were_ever_heard(self, gateway, client):
        gateway.hashtags.down = True

        assert is_error(await client.post("/notes/tags", json={"title": "harbor"}), 503, "store_unavailable")

    async def test_another_gateway_hears_of_a_rule_when_it_looks(self, gateway, client):
        assert isinstance(gateway.recommender, Recommender)
        await self.suggested(client)
        await gateway.hashtags.put_rule(HashtagRule("harbor"))
        assert set(await self.suggested(client)) == {"harbor", "tram"}

        await gateway.vocabulary.follow()

        assert set(await self.suggested(client)) == {"tram"}
