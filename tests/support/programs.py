"""Programs of the system that tests run, by the Debian packages that bring them."""

import os
import shutil

import pytest


def need(program: str, packages: str) -> str:
    """Path of a program. Without it the test is skipped, and fails in CI, where .ci/run installs every package."""
    if found := shutil.which(program):
        return found
    say = pytest.fail if os.environ.get("CI") else pytest.skip
    return str(say(f"no {program} found: apt-get install {packages}"))
