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
