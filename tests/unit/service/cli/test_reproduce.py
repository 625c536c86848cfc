"""The command `notellm reproduce`, as a person types it."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from model.data.cooccurrence import PairRules
from model.data.samples.generate import write
from model.files import write_json
from model.reproduction.results import FORMAT, gold_file, ranks_file, write_arrays
from service.cli.reproduce import reproduce


def notellm(*args: object) -> Result:
    return CliRunner().invoke(reproduce, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder, 1500)
    return folder


def test_the_help_teaches_with_examples():
    text = notellm("--help").output

    assert "Examples:" in text
    for option in (
        "--tables",
        "--seeds",
        "--dry-run",
        "--report-only",
        "--tag-notes",
        "--pairs-min-users",
        "--recall-at",
    ):
        assert option in text


def test_a_dry_run_prints_the_plan_and_writes_nothing(data, tmp_path):
    answer = notellm("--data", data, "--out", tmp_path / "out", "--tables", "3,4", "--seeds", "0,1", "--dry-run")

    assert answer.exit_code == 0
    lines = answer.output.splitlines()
    assert lines[-1] == "18 runs: 0 done, 16 to train"
    assert sum(line.startswith("notellm-") and line.endswith("table 3, 4") for line in lines) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--data is needed"),
        (["--data", "/nowhere"], "'/nowhere' does not exist"),
        (["--data", "DATA", "--seeds", "two"], "'two' is not whole numbers"),
        (["--data", "DATA", "--tables", "2,9"], "there is no table 9"),
        (["--data", "DATA", "--pairs-min-users", "999"], "fewer users a pair"),
        (["--data", "DATA", "--holdout", "2"], "holdout must be within 0..1"),
        (["--data", "DATA", "--tables", "cross-platform"], "--also-test"),
        (["--data", "DATA", "--test-from", "9", "--test-share", "0.2"], "one of --test-from and --test-share"),
        (["--data", "DATA", "--test-share", "0.2", "--holdout", "0.2"], "--holdout is of the split by note"),
        (["--data", "DATA", "--test-from", str(10**15)], "no note was first seen from"),
        (["--data", "DATA", "--sentence-bert", "/nowhere"], "cannot open the encoder /nowhere"),
        (["--report-only"], "no plan.json there"),
    ],
)
def test_a_mistake_is_one_line(args, said, data, tmp_path):
    answer = notellm(*(data if arg == "DATA" else arg for arg in args), "--out", tmp_path)

    assert answer.exit_code != 0
    error = next(line for line in answer.output.splitlines() if line.startswith("Error: "))
    assert said in error
    assert "Traceback" not in answer.output


def test_the_report_alone_needs_neither_data_nor_models(tmp_path):
    row = {"table": "2", "label": "popularity", "value": None, "pool": "p", "ranks": "ranks", "runs": ["popularity-1"]}
    names = (
        "notes",
        "events",
        "users",
        "split_seed",
        "holdout",
        "training_pairs",
        "pairs_min_users",
        "steps",
        "epochs",
    )
    statement = {**dict.fromkeys(names, 3), "data": "d", "digest": "x", "recipe": "small", "base_model": "minilm"}
    statement |= {
        "tag_notes": 1,
        "pairs_per_batch": 2,
        "ordered": True,
        "seeds": [0],
        "start": None,
        "whole_pool": False,
    }
    statement["rules"] = asdict(PairRules())
    plan = {"format": FORMAT, "statement": statement, "pools": {"p": {"data": "d", "notes": 9}}, "ours": ["notellm-1"]}
    write_json(tmp_path / "plan.json", plan | {"rows": [row, row | {"runs": ["gone"]}]})
    write_arrays(tmp_path / gold_file("p"), targets=np.array([0, 1]), users=np.array([2, 2]))
    write_arrays(tmp_path / "runs/popularity-1" / ranks_file("p"), ranks=np.array([0, 1]))
    write_json(tmp_path / "runs/popularity-1/result.json", {"method": {}})

    answer = notellm("--out", tmp_path, "--report-only", "--recall-at", "1,5")

    assert answer.exit_code == 0
    assert answer.output.splitlines() == [
        "not done: Table 2, popularity: 0 of 1 runs done",
        f"1 rows of 1 tables in {tmp_path / 'report.md'}",
    ]
    assert (tmp_path / "report.json").is_file()
