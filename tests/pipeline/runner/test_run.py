"""`espalier run` on a real study: the same bytes as `dvc repro`, whatever is killed on the way."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.files import load_tree
from tests import study

RUN = (sys.executable, "-m", "pipeline.cli", "run", "--workers", "2")


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Path:
    """A study that plain `dvc repro` finished."""
    folder = study.create(tmp_path_factory.mktemp("serial") / "study")
    study.repro(folder)
    return folder


def fresh(serial: Path, folder: Path) -> Path:
    """The same study, not run."""
    names = (
        "artifacts",
        ".checkpoints",
        "reports/records",
        "reports/tables",
        "reports/plots",
        "data",
    )
    shutil.copytree(serial, folder, symlinks=True, ignore=shutil.ignore_patterns("cache", "tmp"))
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("dvc.lock", "mlflow.db"):
        (folder / name).unlink()
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """What git keeps of a run."""
    found = {f"records/{k}": v for k, v in study.tree(folder / "reports/records").items()}
    found |= {f"tables/{k}": v for k, v in study.tree(folder / "reports/tables").items()}
    return found | {"dvc.lock": _sorted_lock(folder)}


def _sorted_lock(folder: Path) -> bytes:
    """Without event files (clocks), whatever the order in which stages ended."""
    from ruamel.yaml import YAML

    lock = YAML(typ="safe").load((folder / "dvc.lock").read_text())["stages"]
    for stage in lock.values():
        stage["outs"] = [o for o in stage.get("outs", ()) if "/events/" not in o["path"]]
    return repr(sorted(lock.items())).encode()


@pytest.mark.slow
def test_two_workers_leave_what_dvc_repro_leaves(serial, tmp_path):
    folder = fresh(serial, tmp_path / "study")
    said = study.run(folder, *RUN)
    assert results(folder) == results(serial)
    assert study.repro(folder) == ["report"]
    assert "train@a done" in said
    again = study.run(folder, *RUN)
    assert again.startswith("all 11 stages were up to date\n")
    for name in ("artifacts", "reports/records"):
        shutil.rmtree(folder / name)
    restored = study.run(folder, *RUN)
    assert "train@a restored" in restored
    assert "train@a done" not in restored
    assert results(folder) == results(serial)
    study.edit(folder, {"[0.5, 0.9]": "[0.5, 0.7]"})
    edited = study.run(folder, *RUN)  # the report finds the new record in dvc.lock
    assert "sweep@a done" in edited
    assert "report done" in edited


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on(serial, tmp_path, how):
    folder = fresh(serial, tmp_path / "study")
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("  h: {", "  h: {train: {epochs: 400}, "))
    at = end_after_an_epoch(folder, how)
    assert 0 < at < 400
    assert at < end_after_an_epoch(folder, signal.SIGINT, at) < 400
    log = (folder / ".checkpoints/logs/train@h.log").read_text()
    assert "resumed from the last checkpoint" in log


def end_after_an_epoch(folder: Path, how: signal.Signals, after: int = 0) -> int:
    """Run train@h and end the run after a further epoch; returns the epochs in its checkpoint."""
    checkpoint = folder / ".checkpoints/train/h/last.safetensors"
    process = subprocess.Popen(
        [*RUN, "--only", "train@h"], cwd=folder, env=study.environment(folder, cold=True)
    )
    while not checkpoint.exists() or load_tree(checkpoint)["counters"]["epoch"] <= after:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(120) == (-how if how == signal.SIGKILL else 130)
    study.wait_until_free(folder, "train@h")
    epochs: int = load_tree(checkpoint)["counters"]["epoch"]
    return epochs


@pytest.mark.slow
def test_params_that_change_meanwhile_are_not_accepted(serial, tmp_path):
    folder = fresh(serial, tmp_path / "study")
    process = subprocess.Popen(
        [*RUN, "--only", "train@h"], cwd=folder, env=study.environment(folder, cold=True),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (folder / ".checkpoints/train@h.lock").exists():
        assert process.poll() is None
        time.sleep(0.02)
    study.edit(folder, {"lr: 0.05": "lr: 0.2"})
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "train@h" in said.splitlines()[-1]
    lock = folder / "dvc.lock"
    assert not lock.exists() or "train@h" not in lock.read_text()
