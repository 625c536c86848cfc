"""The job of pairs on Spark, as an operator applies it, and the driver's image."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from kubeflow_spark_api.models import SparkV1beta2SparkApplication
from support.kubernetes import ROOT, Object

from service.cli.data import pairs

FOLDER = ROOT / "deploy" / "spark"
APPLICATION, *OTHERS = yaml.safe_load_all((FOLDER / "pairs.yaml").read_text())


def refused(application: Object) -> bool:
    """Whether the operator's own model of the kind lacks a field, or finds a type that is not its own.

    It knows no quantity. Volumes are those of any pod, and checked as such.
    """
    application = copy.deepcopy(application)
    for volume in application["spec"]["volumes"]:
        volume.get("emptyDir", {}).pop("sizeLimit", None)
    try:
        known = SparkV1beta2SparkApplication.model_validate(application)
    except ValueError:
        return True
    return known.model_dump(mode="json", by_alias=True, exclude_unset=True) != application


def test_the_objects_fit_their_schemas():
    assert not refused(APPLICATION)
    containers = [{"name": "any", "image": "any"}]
    pod = {"volumes": APPLICATION["spec"]["volumes"], "containers": containers}
    for one in [*OTHERS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod}]:
        for version in ("1.31", "1.37"):
            kubernetes_validate.validate(one, version, strict=True)


def test_a_field_that_is_misspelt_or_of_another_type_is_found():
    assert refused(APPLICATION | {"spec": APPLICATION["spec"] | {"executors": 8}})
    executor = APPLICATION["spec"]["executor"] | {"instances": "eight"}
    assert refused(APPLICATION | {"spec": APPLICATION["spec"] | {"executor": executor}})


def test_its_command_is_one_that_there_is():
    spec = APPLICATION["spec"]
    _, _, module = spec["mainApplicationFile"].partition("/site-packages/")
    assert (ROOT / module).read_text().rstrip().endswith("main()")
    name, *arguments = spec["arguments"]
    assert name == pairs.name
    assert pairs.make_context(name, arguments).params["engine"] == "spark"


def test_driver_and_executors_are_of_one_spark():
    [pinned] = re.findall(r"(?m)^pyspark==(\S+)", (FOLDER / "spark.txt").read_text())
    spec = APPLICATION["spec"]
    assert {spec["sparkVersion"], spec["executor"]["image"].rpartition(":")[2]} == {pinned}
    [ours] = re.findall(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert spec["driver"]["image"] == f"notellm-spark:{ours}"


def test_the_image_is_built_on_the_python_of_the_others():
    [python] = re.findall(r"(?m)^ARG BASE=(.*)", (ROOT / "Dockerfile").read_text())
    assert re.findall(r"(?m)^ARG PYTHON=(.*)", (FOLDER / "Dockerfile").read_text()) == [python]
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_the_driver_is_started_by_spark_and_the_command_by_anyone(tmp_path):
    """Programs that print how they were called stand in for spark-submit and notellm."""
    for name in ("bin/spark-submit", "notellm"):
        program = tmp_path / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {program.name} "$@"\n')
        program.chmod(0o755)
    environment = {"SPARK_HOME": str(tmp_path), "PATH": f"{tmp_path}:/bin", "SPARK_DRIVER_BIND_ADDRESS": "10.1.2.3"}

    def said(*arguments: str) -> str:
        command = [FOLDER / "driver.sh", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert said("driver", "--class", "c", "local:///main.py", "pairs") == (
        "spark-submit --deploy-mode client --conf spark.driver.bindAddress=10.1.2.3 --class c local:///main.py pairs\n"
    )
    assert said("pairs", "--help") == "notellm pairs --help\n"
