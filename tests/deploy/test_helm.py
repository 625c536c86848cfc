"""The Helm chart: the objects of the overlays, and values that each replace a field of them."""

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import helm_python
import jsonschema
import pytest
import yaml
from support.chart import HELM, VALUES, chart, charted
from support.kubernetes import OVERLAYS, ROOT, Object, objects

DEFAULTS: dict[str, Any] = yaml.safe_load((HELM / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((HELM / "values.schema.json").read_text())


def by_name(held: list[Object]) -> list[Object]:
    return sorted(held, key=lambda one: (one["kind"], one["metadata"]["name"]))


def leaves(values: dict[str, Any], way: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where each value of values.yaml stands."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*way, name))
        else:
            yield (*way, name)


def at(values: Any, way: tuple[str, ...]) -> Any:
    for name in way:
        values = values[name]
    return values


def alone(way: tuple[str, ...]) -> dict[str, Any]:
    """One of the operator's values, and no other."""
    value = at(VALUES, way)
    for name in reversed(way):
        value = {name: value}
    return dict(value)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_chart_and_kustomize_render_the_same_objects(overlay):
    """All but the namespace, which is there before: Helm keeps its records in it."""
    applied = [one for one in objects(overlay) if one["kind"] != "Namespace"]
    assert by_name(charted(overlay, {})) == by_name(applied)


def test_helm_finds_nothing_to_say_of_the_chart():
    for values in ({}, VALUES):
        report = helm_python.lint(chart(), values, strict=True, kube_version="v1.31.0")
        assert report["errors"] == []
        assert [one["error"] for one in report["messages"]] == ["icon is recommended"]


def test_objects_are_in_the_namespace_of_the_release():
    assert {one["metadata"]["namespace"] for one in charted("local", {}, "elsewhere")} == {"elsewhere"}


def test_no_value_has_a_default_of_its_own():
    """The overlays are the one source: what is not set is theirs."""
    assert {way for way in leaves(DEFAULTS) if at(DEFAULTS, way) is not None} == {("overlay",), ("settings",)}


@pytest.mark.parametrize("way", [way for way in leaves(DEFAULTS) if way != ("overlay",)], ids=".".join)
def test_every_value_changes_what_is_applied(way):
    if way == ("images", "tag"):
        values: dict[str, Any] = {"images": {"tag": "9.9.9"}}
    elif way[0] == "ingress":
        values = alone(("ingress",)) | {"ingress": {**VALUES["ingress"], "enabled": way != ("ingress", "enabled")}}
    elif way[0] in ("httpRoute", "webhook"):
        values = alone((way[0],))
    else:
        values = alone(way)
    assert any(charted(overlay, values) != charted(overlay, {}) for overlay in OVERLAYS)


def test_the_schema_knows_the_values_and_no_others():
    def described(schema: Object, values: Any) -> None:
        if isinstance(values, dict) and values:
            assert set(schema["properties"]) - {"global"} == set(values)
            assert schema["additionalProperties"] is False
            for name, value in values.items():
                described(schema["properties"][name], value)

    jsonschema.Draft7Validator.check_schema(SCHEMA)
    described(SCHEMA, DEFAULTS)
    jsonschema.validate(VALUES, SCHEMA)


@pytest.mark.parametrize(
    "values",
    [
        {"overlay": "prod"},
        {"replicas": 2},
        {"gateway": {"replica": 2}},
        {"gateway": {"replicas": "two"}},
        {"gateway": {"resources": {"limits": {"cpu": "1"}}}},
        {"checkpoint": "6f1d0c2ab3e49587"},
        {"settings": {"LOG_LEVEL": "DEBUG"}},
        {"indexer": {"shards": 0}},
        {"redis": {"cidr": "0.0.0.0/0"}},
        {"storage": {"index": "10GB"}},
    ],
    ids=json.dumps,
)
def test_a_value_that_is_misspelt_or_wrong_is_refused(values):
    with helm_python.Chart.load(chart()) as loaded, pytest.raises(helm_python.HelmValuesError):
        loaded.validate_schema(values)


def test_settings_that_change_give_their_pods_another_name_to_start_from():
    """Pods name the settings, so that a change of them starts pods anew."""

    def names(values: dict[str, Any]) -> set[str]:
        held = charted("production", values)
        [settings] = [one for one in held if one["kind"] == "ConfigMap"]
        assert json.dumps(held).count(settings["metadata"]["name"]) > 5
        return {settings["metadata"]["name"]}

    first, second = {"settings": {"NOTELLM_LOG_LEVEL": "DEBUG"}}, {"settings": {"NOTELLM_LOG_LEVEL": "ERROR"}}
    assert len(names({}) | names(first) | names(second)) == 3


def test_the_chart_has_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    described = yaml.safe_load((HELM / "Chart.yaml").read_text())
    assert (described["version"], described["appVersion"]) == (version, version)


def test_the_chart_packs(tmp_path):
    packed = helm_python.package(chart(), destination=tmp_path)
    with helm_python.Chart.load(packed) as loaded:
        assert {one["name"] for one in loaded.templates} >= {f"templates/{overlay}.yaml" for overlay in OVERLAYS}
        assert {"README.md", "LICENSE"} <= {one["name"] for one in loaded.files}
