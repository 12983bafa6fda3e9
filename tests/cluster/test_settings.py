"""`compute.cluster`: what of it reaches sbatch."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.runner.slurm import SlurmEngine
from pipeline.study.params.schema import ClusterParams, ComputeParams


@pytest.mark.parametrize(
    "bad",
    [
        {"extra": ["--comment=x\nrm -rf data"]},
        {"partition": "gpu\n"},
        {"time": "4 hours"},
        {"memory": "8"},
        {"gpus": -1},
        {"jobs": 0},
        {"queue": "gpu"},
    ],
)
def test_nothing_but_one_option_per_line_reaches_a_job_script(bad):
    with pytest.raises(ValidationError):
        ClusterParams.model_validate(bad)


def test_a_job_asks_for_what_params_say():
    settings = ClusterParams(partition="gpu", gpus=2, cores=8, extra=("--constraint=a100",))
    job = SlurmEngine(settings, threads=None)._job()
    assert (job["queue"], job["cores"], job["walltime"]) == ("gpu", 8, "04:00:00")
    assert job["job_extra_directives"] == ["--gres=gpu:2", "--constraint=a100"]
    assert job["job_script_prologue"] == ["export ESPALIER_CLUSTER_THREADS=8"]
    assert SlurmEngine(settings, threads=1)._job()["job_script_prologue"][0].endswith("=1")
    assert job["security"] is True
    assert job["job_directives_skip"] == []


def test_a_job_of_several_nodes():
    job = SlurmEngine(ClusterParams(nodes=2, cores=4))._job()
    assert job["job_extra_directives"] == ["--nodes=2", "--ntasks-per-node=1"]
    assert job["job_directives_skip"] == ["-n 1"], "dask-jobqueue asks for one task"
    assert job["job_script_prologue"][1] == "export ESPALIER_NODES=2"


def test_jobs_at_once():
    assert SlurmEngine(ComputeParams().cluster).workers == 16
    assert SlurmEngine(ClusterParams(jobs=3)).workers == 3
    assert SlurmEngine(ClusterParams(jobs=3), 7).workers == 7
