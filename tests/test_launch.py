"""Several processes for one stage: launched, killed, resumed, and no reason to train again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.files import load_tree
from pipeline.study.execution.launch import launched, wanted
from pipeline.study.execution.running import Assignment, train_network
from pipeline.study.execution.runtime import Workplace
from pipeline.study.execution.stopping import STOPPED
from pipeline.training.loop.distributed import Team, TeamError
from pipeline.training.recipe import Recipe
from tests import study

TWO = study.PARAMS.replace("root: .\n", "root: .\ncompute: {processes: 2}\n")


def test_one_process_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESPALIER_PROCESSES", raising=False)
    assert not launched("train", (), 1)
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun has started this process
    assert not launched("train", (), 2)


def test_how_many_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("ESPALIER_PROCESSES", raising=False)
    assert [wanted(p) for p in (1, 3, "auto")] == [1, 3, 4]
    monkeypatch.setenv("ESPALIER_PROCESSES", "2")
    assert wanted("auto") == 2
    monkeypatch.setenv("ESPALIER_PROCESSES", "two")
    with pytest.raises(ValueError, match="ESPALIER_PROCESSES is 'two'"):
        wanted(1)


def test_nodes_need_a_job_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "SLURM_JOB_ID", "ESPALIER_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ESPALIER_NODES", "2")
    with pytest.raises(TeamError, match="ESPALIER_NODES is 2, but this is no job of Slurm"):
        launched("train", (), 1)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(epochs=1, batch_size=7), "batch_size: 7 is less than two .* each of the 4"),
        (Recipe(epochs=1, batch_size=8, sync_batchnorm=True), "sync_batchnorm: true works on GPUs"),
    ],
)
def test_what_several_processes_cannot_do(recipe: Recipe, said: str, tmp_path: Path) -> None:
    nothing: Any = None
    work = Assignment(nothing, nothing, nothing, nothing, recipe, 0)
    place = Workplace(torch.device("cpu"), tmp_path, Team(0, 4))
    with pytest.raises(ValueError, match=said):
        train_network(work, nothing, place, nothing, nothing)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two processes whose training takes long enough to be killed."""
    params = TWO.replace("epochs: 2\n", "epochs: 40\n", 1)
    params = params.replace("batch_size: 50\n", "batch_size: 10\n", 1)
    folder = study.create(tmp_path_factory.mktemp("launch") / "study", params)
    study.run(folder, "dvc", "repro", "-q", "prepare-data")
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train", "--training", "a"],
        cwd=folder,
        env=study.environment(folder, cold=True) | {"ESPALIER_MLFLOW": "off"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def workers(parent: int) -> dict[int, int]:
    """Process ids of the running children of `parent` by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "status").read_text()
            environment = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        if f"PPid:\t{parent}\n" not in status or "State:\tZ" in status:
            continue
        ranks = [int(v[5:]) for v in environment if v.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, int(entry.name))
    return found


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str], after: int = 0) -> None:
    path = folder / ".checkpoints/train/a/last.safetensors"
    for _ in range(3000):
        if path.exists() and load_tree(path)["counters"]["epoch"] > after:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def gone(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_a_killed_worker_ends_the_job_and_the_next_run_resumes(
    prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(prepared, folder, symlinks=True)
    process = start(folder)
    wait_for_checkpoint(folder, process)
    ranks = workers(process.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert time.monotonic() - began < 60
    assert "process 1 of 2 ended with SIGKILL" in said
    assert "run again to resume" in said
    assert gone(ranks[0])

    process = start(folder)  # and now the launcher dies, as when DVC is killed
    wait_for_checkpoint(folder, process, after=5)
    ranks = workers(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    for _ in range(500):
        if all(gone(pid) for pid in ranks.values()):
            break
        time.sleep(0.02)
    assert all(gone(pid) for pid in ranks.values()), "a worker outlived its launcher"

    process = start(folder)
    wait_for_checkpoint(folder, process, after=10)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == STOPPED, "stopped as asked, not failed"

    assert "resumed from the last checkpoint" in finish(folder)
    shutil.copytree(prepared, tmp_path / "undisturbed", symlinks=True)
    finish(tmp_path / "undisturbed")
    for name in ("artifacts/train", "reports/records/train"):
        assert study.tree(folder / name) == study.tree(tmp_path / "undisturbed" / name)


def finish(folder: Path) -> str:
    process = start(folder)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_another_number_of_processes_trains_nothing_again(tmp_path: Path) -> None:
    folder = study.create(tmp_path / "study", TWO)
    ran = study.repro(folder, "finetune@a-p50")
    assert ran == ["prepare-data", "train@a", "prune@a-p50", "finetune@a-p50"]
    study.edit(folder, {"compute: {processes: 2}\n": ""})
    assert study.repro(folder, "finetune@a-p50") == []
