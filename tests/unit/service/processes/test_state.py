"""The runtime folder of a service: what a killed one left is removed, and nothing else ever is."""

import shutil
from pathlib import Path

import pytest

from service.processes.state import runtime_folder
from service.settings import SetupError


@pytest.fixture
def state(tmp_path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_what_a_killed_service_left_is_removed_also_after_its_folder_was_moved(state, tmp_path):
    with runtime_folder(state) as left:
        (left / "redis.sock").touch()
        moved = state.rename(tmp_path / "moved")
        with runtime_folder(moved) as other:
            assert not left.exists()
            assert (moved / "run").resolve() == other
        assert not other.exists()


def test_a_copy_of_the_state_folder_leaves_the_runtime_folder_of_the_original_alone(state, tmp_path):
    with runtime_folder(state) as runtime:
        (runtime / "redis.sock").touch()
        copy = Path(shutil.copytree(state, tmp_path / "copy", symlinks=True))
        with runtime_folder(copy) as other:
            assert other != runtime
        assert (runtime / "redis.sock").exists()
        assert (state / "run").resolve() == runtime


@pytest.mark.parametrize("name", ["precious", "notellm-precious"])
def test_a_link_to_any_folder_leaves_it_alone(state, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "kept").touch()
    (state / "run").symlink_to(tmp_path / name)
    with runtime_folder(state):
        pass
    assert (tmp_path / name / "kept").exists()


def test_a_link_that_leads_nowhere_is_replaced(state):
    (state / "run").symlink_to(state / "run")
    with runtime_folder(state) as runtime:
        assert (state / "run").resolve() == runtime


def test_a_folder_in_the_place_of_the_link_is_one_line(state):
    (state / "run").mkdir()
    with pytest.raises(SetupError, match="run is no link of `notellm serve`; move it away"), runtime_folder(state):
        pass
