"""A whole study in jobs of a real Slurm, with torch: minutes, so `make cluster` only."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

import pytest

from tests import study
from tests.cluster.slurm import Slurm, needs_slurm, until
from tests.pipeline.runner.test_run import fresh, results

ON_SLURM = (sys.executable, "-m", "pipeline.cli", "run", "--engine", "slurm", "--workers", "2")

ONE_JOB = (sys.executable, "-m", "pipeline.cli", "run", "--engine", "slurm", "--workers", "1")
TWO = "compute: {{processes: {}, cluster: {{nodes: {}}}}}\n"

pytestmark = [pytest.mark.cluster, needs_slurm]


def test_jobs_leave_what_dvc_repro_leaves(tmp_path, monkeypatch):
    """Also when the driver is killed on the way: its jobs end by themselves."""
    serial = study.create(tmp_path / "serial")
    study.repro(serial)
    folder = fresh(serial, tmp_path / "study")
    (tmp_path / "slurm").mkdir()
    with closing(Slurm(tmp_path / "slurm")) as slurm:
        slurm.start()
        monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
        driver = subprocess.Popen(ON_SLURM, cwd=folder, env=study.environment(folder, cold=True))
        log = folder / ".checkpoints/logs/train@h.log"
        until(log.exists, "the first training", 300)
        driver.kill()
        driver.wait()
        until(lambda: not slurm.workers(), "the jobs notice that their driver is gone")
        said = study.run(folder, *ON_SLURM)
    assert "train@h done" in said
    assert "on node" in log.read_text()
    assert results(folder) == results(serial)
    assert study.repro(folder) == ["report"]


def test_a_training_on_two_nodes_is_that_of_two_processes(tmp_path, monkeypatch):
    params = study.PARAMS.replace("root: .\n", "root: .\n" + TWO.format(2, 1))
    here = study.create(tmp_path / "here", params)
    study.run(here, sys.executable, "-m", "pipeline.cli", "run", "--only", "train@a")
    there = study.create(tmp_path / "there", params.replace(TWO.format(2, 1), TWO.format(1, 2)))
    (tmp_path / "slurm").mkdir()
    with closing(Slurm(tmp_path / "slurm")) as slurm:
        slurm.start()
        monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
        said = study.run(there, *ONE_JOB, "--only", "train@a")
    assert "train@a done" in said
    record = "reports/records/train/a.json"
    assert (there / record).read_bytes() == (here / record).read_bytes()
