"""The local engine: real processes, forked from a server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.forkserver import _forkserver
from pathlib import Path

import pytest

from pipeline.runner import local
from pipeline.runner.local import LocalEngine, log_of, usable_workers
from pipeline.runner.task import Task

MODULE = "tests.pipeline.runner.fake_stage"
ROOT = Path(__file__).resolve().parents[3]


def fake(name: str, *more: str) -> Task:
    return Task(name, MODULE, ("--name", name, *more))


def wait_for(path: Path) -> str:
    for _ in range(1500):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.02)
    raise AssertionError(f"{path} was never written")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PRELOADED", ("click",))
    with LocalEngine(2) as made:
        yield made


def test_exit_codes_outputs_and_logs(engine):
    futures = [engine.submit(fake(n, "--code", c)) for n, c in (("good", "0"), ("bad", "3"))]
    assert [f.result(60) for f in futures] == [0, 3]
    assert Path("good").exists()
    assert log_of("bad").read_text() == "bad runs\n"


def test_a_task_that_is_told_to_stop_says_so(engine):
    future = engine.submit(fake("slow", "--seconds", "60"))
    wait_for(Path("slow.pid"))
    engine.stop()
    assert future.result(60) == -signal.SIGTERM
    assert not Path("slow").exists()


def test_the_server_outlives_the_signal_that_asks_all_processes_of_a_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PRELOADED", ("click",))
    with LocalEngine(1) as engine:
        future = engine.submit(fake("slow", "--seconds", "60"))
        for pid in (_forkserver._forkserver_pid, int(wait_for(Path("slow.pid")))):
            os.kill(pid, signal.SIGTERM)
        assert future.result(60) == -signal.SIGTERM
        server = _forkserver._forkserver_pid
        assert engine.submit(fake("next")).result(60) == 0
        assert _forkserver._forkserver_pid == server


def test_a_task_whose_server_is_killed_was_ended_by_a_signal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PRELOADED", ("click",))
    with LocalEngine(1) as engine:
        future = engine.submit(fake("slow", "--seconds", "60"))
        child = int(wait_for(Path("slow.pid")))
        os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
        assert future.result(60) == -signal.SIGKILL
        os.kill(child, signal.SIGKILL)


def test_every_worker_sees_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PRELOADED", ("click",))
    with LocalEngine(2, (4, 7)) as engine:
        for future in [engine.submit(fake(n, "--seconds", "0.5")) for n in "ab"]:
            assert future.result(60) == 0
    assert {Path(n).read_text() for n in "ab"} == {"4", "7"}


@pytest.mark.parametrize(("threads", "seen"), [(4, "1"), (None, "3")])
def test_without_compute_threads_torch_chooses_as_under_dvc_repro(
    tmp_path, monkeypatch, threads, seen
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PRELOADED", ("click",))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    _forkserver._stop()  # a process has one, with the environment of its first engine
    with LocalEngine(1, threads=threads) as engine:
        assert engine.submit(fake("omp", "--variable", "OMP_NUM_THREADS")).result(60) == 0
    _forkserver._stop()
    assert Path("omp").read_text() == seen


def test_a_module_that_cannot_be_preloaded_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PRELOADED", ("click", "no_such_module"))
    with LocalEngine(1):
        pass
    assert "not preloaded, stages start slower: no_such_module" in caplog.text


@pytest.mark.parametrize("victim", ["driver", "server"])
def test_children_end_with_their_driver(tmp_path, victim):
    """kill -9: neither the server nor the task outlives the driver."""
    driver = f"""
import os
from pathlib import Path
from pipeline.runner import local
from pipeline.runner.task import Task
local.PRELOADED = ("click",)
if __name__ == "__main__":
    with local.LocalEngine(1) as engine:
        from multiprocessing.forkserver import _forkserver
        Path("server").write_text(str(_forkserver._forkserver_pid))
        engine.submit(Task("slow", "{MODULE}", ("--name", "slow", "--seconds", "60"))).result()
"""
    (tmp_path / "driver.py").write_text(driver)
    process = subprocess.Popen(
        [sys.executable, "driver.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    child = int(wait_for(tmp_path / "slow.pid"))
    server = int(wait_for(tmp_path / "server"))
    os.kill(process.pid if victim == "driver" else server, signal.SIGKILL)
    for _ in range(1500):
        if not is_alive(child) and not is_alive(server):
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not is_alive(child)
    assert not is_alive(server)
    assert not (tmp_path / "slow").exists()


def test_tasks_run_the_code_of_their_driver(tmp_path):
    """Not that which is installed: checkouts may share an environment."""
    home, study = tmp_path / "home", tmp_path / "study"
    shutil.copytree(ROOT / "pipeline", home / "pipeline")
    study.mkdir()
    (home / "where.py").write_text(
        "import pipeline, pathlib\n"
        "def main(**_):\n"
        "    pathlib.Path('where').write_text(pipeline.__path__[0])\n"
        "    raise SystemExit(0)\n"
    )
    (home / "driver.py").write_text(
        "import os, sys\n"
        "from pipeline.runner import local\n"
        "from pipeline.runner.task import Task\n"
        "local.PRELOADED = ('click',)\n"
        "if __name__ == '__main__':\n"
        "    os.chdir(sys.argv[1])\n"
        "    with local.LocalEngine(1) as engine:\n"
        "        assert engine.submit(Task('a', 'where')).result(60) == 0\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, home / "driver.py", study], cwd=tmp_path, env=environment, check=True
    )
    assert (study / "where").read_text() == str(home / "pipeline")


def test_workers_by_cores_memory_and_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "_gpu_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(local, "_free_memory", lambda: 64e9)
    assert usable_workers(1) == (8, ())
    assert usable_workers(4) == (2, ())
    assert usable_workers(None) == (1, ())
    monkeypatch.setattr(local, "_free_memory", lambda: 4e9)
    assert usable_workers(1) == (2, ())
    monkeypatch.setattr(local, "_gpu_count", lambda: 4)
    assert usable_workers(1) == (4, (0, 1, 2, 3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert usable_workers(1)[0] == 2
