"""The runbook names nothing that is not there: commands with their options, settings, keys of Redis, files."""

import re
import shlex
from pathlib import Path

import click
import pytest

from service.cli.main import cli
from service.settings import environment_names
from service.store import schema

FOLDER = Path(__file__).parents[3] / "deploy"
RUNBOOK = (FOLDER / "runbook.md").read_text()
CODE = re.findall(r"```sh\n(.*?)```", RUNBOOK, re.DOTALL)
COMMANDS = sorted({match[1] for block in CODE for match in re.finditer(r"\bnotellm ((?!&&)[a-z-][^#\n|`;>&]*)", block)})


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_one_and_takes_what_it_is_given(words):
    found: click.Command = cli
    given = [word.strip("[]") for word in shlex.split(words)]
    while isinstance(found, click.Group) and given and not given[0].startswith("-"):
        assert given[0] in found.commands
        found = found.commands[given.pop(0)]
    options = {name for parameter in found.params for name in parameter.opts} | {"--help"}
    assert {word for word in given if word.startswith("--")} <= options
    required = {name for parameter in found.params if parameter.required for name in parameter.opts if name[:2] == "--"}
    assert required <= {*given}


def test_every_setting_is_one():
    named = set(re.findall(r"\bNOTELLM_[A-Z_]*[A-Z]", RUNBOOK))
    assert named - {*environment_names(), "NOTELLM_KEY"} == set()
    assert len(named) > 5


def test_every_key_of_redis_is_one():
    named = set(re.findall(r"notellm:v1:[a-z]+", RUNBOOK))
    assert named <= set(re.findall(r"notellm:v1:[a-z]+", schema.__doc__ or ""))
    assert len(named) > 3


def test_every_place_that_is_linked_is_there():
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)", RUNBOOK, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK):
        file, _, place = target.partition("#")
        if file == "alerts.md":
            continue  # its own tests look after it
        assert (FOLDER / file).exists() if file else place in headings
