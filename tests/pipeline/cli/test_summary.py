"""The end of a run: one table, what is odd, what changed against git."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import summary

ROOT = Path(__file__).resolve().parents[3]


def test_the_table_fits_and_says_what_was_not_run(tmp_path: Path) -> None:
    names = ["pruning", "method", "dense_top1", "final_top1", "final_top1_std", "macs_nonzero"]
    rows = [
        [*names, "params_nonzero", "status"],
        ["a" * 80, "hspg", "99.1666", "98.0555", "", "48.4", "19.771", "done"],
        ["b", "dense", "", "", "", "", "", "not run"],
    ]
    path = tmp_path / "main.csv"
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    head, one, two = summary.table(path).splitlines()
    assert head.split() == ["row", "method", "final", "%", "dense", "%", "MACs", "%", "params", "%"]
    assert one.split() == [f"{'a' * 59}…", "hspg", "98.06", "99.17", "48.40", "19.77"]
    assert two.split() == ["b", "dense", "not", "run", "–", "–", "–"]
    assert max(map(len, (head, one, two))) < 120


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A git repository with the default study's records."""
    shutil.copytree(ROOT / "reports/records", tmp_path / "reports/records")
    (tmp_path / "params.yaml").write_text("study: t\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    commit(tmp_path)
    return tmp_path


def commit(folder: Path) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    for command in (("add", "-A"), (*who, "commit", "-qm", "records")):
        subprocess.run(["git", *command], cwd=folder, check=True)


def edit(folder: Path, name: str, **changes: object) -> None:
    path = folder / f"reports/records/evaluate/{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_changed_against_git(folder: Path) -> None:
    rows = len(list((folder / "reports/records/evaluate").glob("*.json")))
    assert summary.changes(folder) == f"All {rows} records equal those in git."
    edit(folder, "vgg-hspg-s0", final={"loss": 0.1, "top1": 90.0})
    edit(folder, "resnet8-hspg-s0", final={"loss": 0.1, "top1": 98.5})
    said = summary.changes(folder)
    assert said.startswith(f"2 of {rows} rows differ from their records in git, final top1 by up ")
    assert "to 7.22 (vgg-hspg-s0)" in said


def test_the_records_of_parts_are_compared_too(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "reports").rename(folder / "one/reports")
    (folder / "params.yaml").write_text("study: t\nparts: [one]\n")
    commit(folder)
    rows = len(list((folder / "one/reports/records/evaluate").glob("*.json")))
    assert summary.changes(folder) == f"All {rows} records equal those in git."
    edit(folder / "one", "vgg-hspg-s0", final={"loss": 0.1, "top1": 90.0})
    assert summary.changes(folder).startswith(f"1 of {rows} rows differ")
    counts = {"params_dense": 77754, "params_kept": 77754, "params_nonzero": 77754}
    edit(folder / "one", "resnet8-hspg-s0", counts=counts)
    assert summary.warnings(folder)[0].startswith("resnet8-hspg-s0: hspg removed 0 of 77,754")


LOCKED = """\
stages:
  train@a:
    outs:
    - path: artifacts/events/train/a.jsonl
      md5: 1
    - path: reports/records/train/a.json
      md5: 2
"""


@pytest.mark.parametrize(
    ("lock", "told"),
    [
        (LOCKED, "git."),
        (LOCKED.replace("md5: 1", "md5: 3"), "git. dvc.lock differs by the hashes of 1 event "
         "files, which hold times."),
        (LOCKED + "    deps:\n", "git. dvc.lock differs by the hashes of code that altered no "
         "result."),
        (LOCKED.replace("md5: 2", "md5: 3"), "git."),
    ],
)  # fmt: skip
def test_why_the_lock_differs(folder: Path, lock: str, told: str) -> None:
    (folder / "dvc.lock").write_text(LOCKED)
    commit(folder)
    (folder / "dvc.lock").write_text(lock)
    assert summary.changes(folder).endswith(told)


def test_a_study_of_sweeps_alone(tmp_path: Path) -> None:
    path = tmp_path / "main.csv"
    path.write_text("pruning,model,method,status\n")
    (tmp_path / "params.yaml").write_text("study: t\n")
    assert summary.table(path).startswith("No pruned networks here, so no rows")
    assert summary.changes(tmp_path).startswith("No records of pruned networks here")


def test_no_git_is_no_error(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "reports/records", tmp_path / "reports/records")
    (tmp_path / "params.yaml").write_text("study: t\n")
    assert "is in git yet" in summary.changes(tmp_path)


def test_a_pruning_that_removed_nothing(folder: Path) -> None:
    assert summary.warnings(folder) == []
    counts = {"params_dense": 77754, "params_kept": 77754, "params_nonzero": 77754}
    edit(folder, "resnet8-hspg-s0", counts=counts)
    assert summary.warnings(folder) == [
        "resnet8-hspg-s0: hspg removed 0 of 77,754 parameters: "
        "is its penalty too small, or the training too short?"
    ]
    edit(folder, "resnet8-hspg-s0", target={"rule": "none"})
    assert summary.warnings(folder) == [], "nothing was to be removed"
