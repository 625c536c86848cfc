"""The state folder of a service, closed to others; and its runtime folder: what a killed one left is removed, and
nothing else ever is."""

import shutil
from pathlib import Path

import pytest

from service.processes.state import close_to_others, make_folder, runtime_folder, usable
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


def test_a_state_folder_is_closed_to_other_users(state):
    (state / "redis").mkdir()
    (state / "redis" / "appendonly.aof").touch()
    (state / "index").mkdir(mode=0o700)
    (state / "lock").touch()
    (state / "run").symlink_to(state.parent)
    for folder in (state, state / "redis", state.parent):
        folder.chmod(0o755)

    assert sorted(close_to_others(state)) == [state, state / "redis"]

    assert {oct(path.stat().st_mode & 0o777) for path in (state, state / "redis", state / "index")} == {"0o700"}
    assert state.parent.stat().st_mode & 0o777 == 0o755
    assert close_to_others(state) == []


def test_of_a_folder_with_other_files_only_ours_are_closed(state):
    for name in ("redis", "photos"):
        (state / name).mkdir()
        (state / name).chmod(0o755)
    state.chmod(0o755)

    assert close_to_others(state) == [state / "redis"]

    assert [path.stat().st_mode & 0o777 for path in (state, state / "photos")] == [0o755, 0o755]


def test_a_folder_that_cannot_be_made_is_one_line_that_names_the_setting(state):
    (state / "file").touch()
    with (
        pytest.raises(SetupError, match=r"^NOTELLM_STATE_DIR=.*/file/x: there is a file where a folder should be; set"),
        usable(state),
    ):
        (state / "file" / "x").mkdir()
    for folder, reason in (
        (state / "file", "there is a file where a folder should be"),
        (state / "file" / "x", "there is a file where a folder should be"),
        (Path("/proc/nope"), "No such file or directory"),
        (Path("/proc"), "No such file or directory"),
    ):
        with pytest.raises(SetupError, match=rf"^NOTELLM_INDEX__SNAPSHOT_DIR cannot be used: {folder}: .*{reason}$"):
            make_folder(folder, "NOTELLM_INDEX__SNAPSHOT_DIR")
    make_folder(state / "a" / "b", "NOTELLM_INDEX__SNAPSHOT_DIR")
    assert list((state / "a" / "b").iterdir()) == []
