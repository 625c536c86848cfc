"""Experiments and turns of learning over HTTP: what the gateway has heard of them, as the contract has it."""

import pytest
from support.gateway import MemoryGateway

from service.contract.examples import EXAMPLES
from service.experiments.overview import Overview
from service.store.experiments.records import Arm, Experiment

EXPERIMENT = Experiment("spread", (Arm("A", "old", {}), Arm("B", "new", {"diversity": 0.2})), ((0, 500),), 1767225600.0)


@pytest.fixture
async def client():
    gateway = MemoryGateway()
    async with gateway.client() as client:
        client.gateway = gateway
        yield client


async def heard(client, experiments, findings) -> None:
    async def of_experiments(_):
        return 1, experiments

    async def of_findings(_):
        return 1, findings

    client.gateway.app.state.overview = Overview(of_experiments, of_findings)
    await client.gateway.app.state.overview.follow()


async def test_a_gateway_that_heard_nothing_says_so_and_no_list_is_empty_for_it(client):
    for path in ("/experiments", "/experiments/spread", "/learning"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")


async def test_an_experiment_without_a_report_has_none_and_one_that_never_was_is_not_found(client):
    await heard(client, [EXPERIMENT], {})

    [listed] = (await client.get("/experiments")).json()["items"]
    found = (await client.get("/experiments/spread")).json()

    assert found == listed | {"report": None}
    assert listed["arms"][1] == {"name": "B", "model": "new", "rules": {"diversity": 0.2}}
    missing = await client.get("/experiments/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "experiment_not_found")
    assert "other" not in missing.json()["error"]["message"]
    assert (await client.get("/experiments/Spread")).status_code == 422
    assert (await client.get("/learning")).json() == {"turns": []}
    assert (await client.get("/learning?limit=1")).status_code == 422


async def test_what_was_told_is_answered_as_it_was(client):
    import json

    report, [turn] = EXAMPLES["experiment"]["report"], EXAMPLES["learning"]["turns"]
    told = {("experiment", "spread"): json.dumps(report).encode(), ("turn", "a"): json.dumps(turn).encode()}
    await heard(client, [EXPERIMENT], told)

    assert (await client.get("/experiments/spread")).json()["report"] == report
    assert (await client.get("/learning")).json() == {"turns": [turn]}
