"""Alerts: the rules are well-formed and tested, and a real Prometheus raises them over the real service."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support.metrics_table import documented
from support.programs import need
from support.prometheus import CONFIG, DEPLOY, RULES, alerts_of
from support.watched import PROMISES, Watched, promises

TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
ADVICE = DEPLOY / "alerts.md"
PARTS = ("**What it means.**", "**What users notice.**", "**Look.**", "**Do.**")


def promtool(*words: str | Path) -> None:
    ended = subprocess.run([need("promtool", "prometheus"), *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_promtool_accepts_configuration_and_rules():
    promtool("check", "config", CONFIG)
    promtool("check", "rules", RULES)


def test_every_alert_fires_and_keeps_still_as_its_tests_say():
    promtool("test", "rules", *TESTS)


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not():
    seen: set[tuple[str, bool]] = set()
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for asked in test["promql_expr_test"]:
                name = re.search(r'alertname=~?"(\w+)', asked["expr"])
                assert name
                fired = [re.search(r'alertname="(\w+)"', sample["labels"]) for sample in asked["exp_samples"]]
                seen |= {(found[1], True) for found in fired if found} or {(name[1], False)}

    assert seen >= {(name, fires) for name in alerts_of() for fires in (True, False)}


def test_every_alert_says_how_bad_it_is_and_where_to_read_on():
    for alert in alerts_of().values():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}


def test_every_alert_leads_to_a_section_that_says_what_to_look_at_and_what_to_do():
    sections = dict(re.findall(r"(?ms)^## (\w+)\n(.*?)(?=^## |\Z)", ADVICE.read_text()))

    assert sections.keys() == alerts_of().keys()
    for name, alert in alerts_of().items():
        assert alert["annotations"]["runbook_url"] == f"deploy/alerts.md#{name.lower()}"
        for part in PARTS:
            assert part in sections[name], (name, part)


def test_rules_ask_for_nothing_that_no_process_exports():
    rows = documented()
    exported = {
        name + suffix
        for name, row in rows.items()
        for suffix in (("_bucket", "_count", "_sum") if row.type == "histogram" else ("",))
    }

    assert set(re.findall(r"\bnotellm_\w+(?=[{\[) ])", RULES.read_text())) <= exported


def test_every_rule_can_be_evaluated_over_the_running_service(watched: Watched):
    watched.prometheus.until(lambda: all(rule["health"] != "unknown" for rule in watched.prometheus.rules()))

    assert [rule["name"] for rule in watched.prometheus.rules() if rule["health"] != "ok"] == []


def test_promises_are_measured_on_the_running_service(watched: Watched):
    ratios = promises(watched.prometheus)

    assert len(ratios) == len(PROMISES)
    assert all(0 <= ratio <= 1 for ratio in ratios)


def test_nothing_is_even_pending_on_a_healthy_service(watched: Watched):
    # A machine that is busy with other tests may well be late with a note, or with an answer among hundreds.
    late = {"FreshnessBurn", "FreshnessBurnSlow", "ErrorBurnSlow"}

    assert watched.prometheus.alerts().keys() <= late


def advised() -> list[str]:
    """What the advice asks Prometheus."""
    return re.findall(r"(?m)^ask '(.*)'$", ADVICE.read_text())


@pytest.mark.parametrize("expression", advised())
def test_what_the_advice_asks_prometheus_is_a_question_about_exported_metrics(watched: Watched, expression: str):
    watched.prometheus.query(expression)  # raises on a mistake of grammar
    histograms = {name + suffix for name in documented() for suffix in ("_bucket", "_count", "_sum")}

    named = set(re.findall(r"\bnotellm_\w+", expression))
    assert named <= documented().keys() | histograms
    assert named or expression.startswith("notellm:")


def test_the_advice_names_only_events_that_are_logged():
    named = re.findall(r"grep (?:-E )?'?([a-z_|]+)'?", ADVICE.read_text())
    code = "".join(
        path.read_text() for folder in ("service", "indexer") for path in (DEPLOY.parent / folder).rglob("*.py")
    )

    assert named
    for event in "|".join(named).split("|"):
        assert f'"{event}"' in code


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """It holds its breath: it neither answers nor ends, so that nobody starts it again."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.timeout(180)
def test_a_shard_that_does_not_answer_raises_its_alert_until_it_does(watched: Watched):
    prometheus = watched.prometheus
    with stopped(watched.service.children()["indexer"]):
        prometheus.until(lambda: {"ShardDown", "TargetDown"} <= prometheus.alerts().keys())
        down = prometheus.alerts()["ShardDown"]
        assert (down["state"], down["labels"]["severity"]) == ("firing", "page")
        shard = down["labels"]["shard"]
        assert down["annotations"]["summary"] == f"Shard {shard} does not answer"
    prometheus.until(lambda: not {"ShardDown", "TargetDown"} & prometheus.alerts().keys())


@pytest.mark.timeout(180)
def test_a_queue_without_a_worker_grows_old_although_no_worker_is_left_to_say_so(watched: Watched):
    prometheus = watched.prometheus
    with stopped(watched.service.children()["worker"]), watched.service.client() as notellm:
        notellm.put("waits", {"title": "Nobody reads this yet"})
        prometheus.until(lambda: prometheus.query("max(notellm_queue_oldest_seconds) > 3"))
        prometheus.until(lambda: "TargetDown" in prometheus.alerts())
    prometheus.until(lambda: prometheus.query("max(notellm_queue_oldest_seconds) == 0"))
    prometheus.until(lambda: "TargetDown" not in prometheus.alerts())
