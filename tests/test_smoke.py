"""The whole pipeline, by `dvc repro`, in a temporary copy: what runs when, and what survives."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.files import load_tree
from tests import study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study after its first `dvc repro`, committed. Not to be changed: see `copy`."""
    folder = study.create(tmp_path_factory.mktemp("finished") / "study")
    ran = study.repro(folder)
    assert (len(ran), ran[0], ran[-1]) == (11, "prepare-data", "report")
    study.commit(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study to work in."""
    shutil.copytree(finished, tmp_path / "study", symlinks=True)
    return tmp_path / "study"


def test_tables_and_figures_are_there(finished: Path) -> None:
    for kind in ("md", "csv", "tex"):
        table = (finished / f"reports/tables/main.{kind}").read_text()
        assert re.search(r"a-p50(.|\n)*h-zeros", table)
    assert list((finished / "reports/plots").glob("*.svg"))


def test_a_second_repro_only_looks(copy: Path) -> None:
    before = study.tree(copy / "reports/tables")
    assert study.repro(copy) == ["report"]  # of a folder that moved
    assert "reports/ and MLflow are up to date" in study.run(copy, "dvc", "repro")
    assert study.tree(copy / "reports/tables") == before


def test_one_more_sparsity_runs_one_sweep(copy: Path) -> None:
    study.edit(copy, {"[0.5, 0.9]": "[0.5, 0.7, 0.9]"})
    assert study.repro(copy) == ["sweep@a", "report"]
    assert "0.7" in (copy / "reports/tables/sweep.csv").read_text()


def test_one_more_pruning_runs_its_three_stages(copy: Path) -> None:
    line = "  a-p80: {training: a, target: {rule: fraction, value: 0.8}}\n"
    study.edit(copy, {"  h-zeros": f"{line}  h-zeros"})
    assert study.repro(copy) == ["prune@a-p80", "finetune@a-p80", "evaluate@a-p80", "report"]
    assert "a-p80" in (copy / "reports/tables/main.md").read_text()


def test_a_hyper_parameter_reruns_its_method_only(copy: Path) -> None:
    study.edit(copy, {"penalty: 0.2": "penalty: 0.1"})
    ran = study.repro(copy)
    assert ran == ["train@h", "prune@h-zeros", "finetune@h-zeros", "evaluate@h-zeros", "report"]


def test_study_code_and_new_methods_retrain_nothing(copy: Path) -> None:
    paths = copy / "pipeline/study/paths.py"
    paths.write_text(paths.read_text() + "\n# edited\n")
    shutil.copy(copy / "methods/dense/method.py", copy / "methods/my_method.py")
    stages = ["prepare-data", "train", "prune", "finetune", "evaluate", "sweep"]
    study.run(copy, "dvc", "status", "-q", *stages)  # exit 1 when anything changed
    loop = copy / "pipeline/training/loop/fit.py"
    loop.write_text(loop.read_text() + "\n# edited\n")
    assert "train@a" in study.run(copy, "dvc", "status", *stages)


def test_locks_agree_with_dvc(copy: Path) -> None:
    """Fresh, stale and accepted are what `dvc status` says too, and nothing runs."""
    stages = ["prepare-data", "train", "prune", "finetune", "evaluate", "sweep"]
    locks = ["python", "-m", "pipeline.cli", "locks", "."]
    assert study.run(copy, *locks) == ".: fresh, 10 stages\n"
    (copy / "pipeline/data/__pycache__").mkdir(exist_ok=True)
    (copy / "pipeline/data/__pycache__/more.pyc").write_bytes(b"compiled")
    for name in ("pipeline/training/loop/fit.py", "methods/hspg/method.py"):
        path = copy / name
        path.write_text(path.read_text() + "\n# edited\n")
    said = study.run(copy, *locks, check=False)
    assert ".: train@h: ./pipeline/training, ./methods/hspg\n" in said
    assert ".: 9 of 10 stages are stale\n" in said
    stale = set(re.findall(r"^\.: ([a-z]+@\S+):", said, re.M))
    changed = study.run(copy, "dvc", "status", *stages)
    assert stale == set(re.findall(r"^([a-z]+@\S+):$", changed, re.M))
    study.run(copy, *locks, "--accept")
    study.run(copy, "dvc", "status", "-q", *stages)  # exit 1 when anything changed
    study.edit(copy, {"penalty: 0.2": "penalty: 0.1"})
    before = (copy / "dvc.lock").read_bytes()
    said = study.run(copy, *locks, "--accept", check=False)
    assert ".: train@h: params.yaml: methods.hspg\n" in said
    assert "1 by params or data: `dvc repro` must run them" in said
    assert (copy / "dvc.lock").read_bytes() == before


def test_a_new_database_gets_every_run_and_the_same_tables(copy: Path) -> None:
    before = study.tree(copy / "reports/tables")
    (copy / "mlflow.db").unlink()
    shutil.rmtree(copy / "mlartifacts")
    assert study.repro(copy) == ["report"]
    assert study.tree(copy / "reports/tables") == before


def test_the_run_cache_restores_everything(copy: Path) -> None:
    before = study.tree(copy / "reports/tables")
    for name in ("artifacts", "data", "reports/records"):
        shutil.rmtree(copy / name)
    for name in ("mlflow.db", "dvc.lock"):
        (copy / name).unlink()
    assert study.repro(copy) == ["report"]
    assert study.tree(copy / "reports/tables") == before


def test_a_second_clone_pulls_and_executes_nothing(copy: Path, tmp_path: Path) -> None:
    study.run(copy, "dvc", "remote", "add", "-d", "local", str(tmp_path / "remote"))
    study.run(copy, "dvc", "push", "-q")
    study.commit(copy)
    clone = tmp_path / "clone"
    study.run(copy, "git", "clone", "-q", str(copy), str(clone))
    study.run(clone, "dvc", "pull", "-q")
    assert study.repro(clone) == ["report"]
    assert study.tree(clone / "reports/tables") == study.tree(copy / "reports/tables")
    assert study.run(clone, "git", "status", "--porcelain") == ""


def test_a_fresh_clone_rebuilds_the_tables_from_the_records_alone(
    copy: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    study.run(copy, "git", "clone", "-q", str(copy), str(clone))
    assert study.repro(clone, "--single-item", "report") == ["report"]
    for made in ("reports/tables", "reports/plots"):
        assert study.tree(clone / made) == study.tree(copy / made)


def test_dvc_speaks_of_the_study(copy: Path) -> None:
    for verb in ("params", "metrics"):
        assert study.run(copy, "dvc", verb, "diff") == ""
    study.edit(copy, {"penalty: 0.2": "penalty: 0.1"})
    header, change = study.run(copy, "dvc", "params", "diff").splitlines()
    assert header.split() == ["Path", "Param", "HEAD", "workspace"]
    assert change.split() == ["params.yaml", "methods.hspg.penalty", "0.2", "0.1"]
    shown = study.run(copy, "dvc", "metrics", "show", "--md")
    assert "reports/records/evaluate/a-p50.json" in shown
    assert "studies" not in shown
    graph = study.run(copy, "dvc", "dag", "--collapse-foreach-matrix")
    stages = ["check", "prepare-data", "train", "prune", "finetune", "evaluate", "sweep", "report"]
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)*", graph)) == set(stages)
    assert max(map(len, graph.splitlines())) < 200  # DVC draws it anew: 155 or 173 characters


def test_the_page_of_plots_needs_no_network(copy: Path) -> None:
    said = study.run(copy, "dvc", "plots", "show")
    assert "failed" not in said
    page = (copy / "dvc_plots/index.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    shown = [copy / "dvc_plots" / name for name in re.findall(r'src="([^"]+)"', page)]
    assert len(shown) == 5
    assert all(path.is_file() for path in shown)


def test_an_experiment_sets_a_parameter(copy: Path) -> None:
    shown = study.run(copy, "dvc", "exp", "run", "-S", "sweep.sparsities=[0.5,0.6]")
    assert study.executed(shown) == ["sweep@a", "report"]
    assert "warn" not in shown.lower()
    assert "0.6" in (copy / "reports/tables/sweep.csv").read_text()
    changed = study.run(copy, "git", "diff", "--name-only", "reports/records")
    assert changed.split() == ["reports/records/sweep/a.json"]
    assert study.run(copy, "dvc", "metrics", "diff") == ""  # DVC leaves out lists: docs/dvc.md


def test_changed_metrics_are_shown(copy: Path) -> None:
    study.edit(copy, {"rule: fraction, value: 0.5": "rule: fraction, value: 0.6"})
    study.repro(copy)
    rows = study.run(copy, "dvc", "metrics", "diff").splitlines()[1:]
    assert {row.split()[0] for row in rows} == {"reports/records/evaluate/a-p50.json"}
    assert any(re.search(r"\btarget\.value +0\.5 +0\.6 ", row) for row in rows)


def test_a_queue_of_experiments(copy: Path) -> None:
    home = copy / "studies/sfw-digits"
    for seed in (1, 2):
        change = f"data.split_seed={seed}"
        study.run(home, "dvc", "exp", "run", "--queue", "-S", change, "prepare-data")
    said = study.run(home, "dvc", "exp", "run", "--run-all")
    # The copy leaves out the study's dvc.lock, so DVC tells that it cannot check out its data.
    warnings = re.findall(r"^warning: (.*)", said, re.M | re.I)
    assert all(w.startswith("No file hash info found") for w in warnings), warnings
    shown = csv.DictReader(study.run(home, "dvc", "exp", "show", "--csv").splitlines())
    rows = [row for row in shown if row["Experiment"]]
    assert sorted(row["data.split_seed"] for row in rows) == ["1", "2"]
    assert [row["State"] for row in rows] == ["Success", "Success"]
    assert len({row["card_sha"] for row in rows} - {"", "!"}) == 2  # each prepared its own data


def test_a_study_stands_on_its_own(copy: Path) -> None:
    home = copy / "studies/sfw-digits"
    assert study.run(home, "dvc", "params", "diff") == ""
    assert "train@mlp-sfw-s0" in study.run(home, "dvc", "dag", "--mermaid")
    first = study.run(home, "dvc", "exp", "run", "-S", "data.split_seed=1", "prepare-data")
    assert study.executed(first) == ["prepare-data"]
    (row,) = study.run(home, "dvc", "params", "diff").splitlines()[1:]
    assert row.split() == ["params.yaml", "data.split_seed", "0", "1"]
    (copy / "pipeline/data/__pycache__").mkdir(exist_ok=True)
    (copy / "pipeline/data/__pycache__/more.pyc").write_bytes(b"compiled")
    study.run(home, "dvc", "status", "-q", "prepare-data")
    (copy / "pipeline/data/more.py").write_text("# more")
    assert "code/pipeline/data" in study.run(home, "dvc", "status", "prepare-data")


def test_a_dry_run_of_a_fresh_clone(copy: Path, tmp_path: Path) -> None:
    study.run(copy, "git", "clone", "-q", str(copy), str(tmp_path / "clone"))
    dry = ("dvc", "repro", "--dry")
    said = study.run(tmp_path / "clone", *dry, "--force")
    assert len(study.executed(said)) == 11
    said = study.run(tmp_path / "clone", *dry, "--allow-missing")
    assert study.executed(said) == ["report"]
    said = study.run(tmp_path / "clone", *dry, check=False)  # as docs/dvc.md says
    assert re.search(r"\[Errno 2\] .*artifacts/check\.txt", said)


def test_bad_params_stop_before_any_work(copy: Path) -> None:
    """Neither a stage runs nor does DVC remove the outputs of the stage that it would run."""
    page = (study.REPOSITORY / "docs/dvc.md").read_text().partition("in a finished study |")[2]
    rows = re.findall(r"\| `(params.yaml:.+)` \|$", page.partition("\n\n")[0], re.M)
    edits = {"d: hspg,": "d: hspgg,", "g: h,": "g: hh,", "finetune: {e": "# {e", "s: 2": "s: -2"}
    before = study.tree(copy / "reports") | study.tree(copy / "artifacts")
    for ours, old in zip(rows, edits, strict=True):
        study.edit(copy, {old: edits[old]})
        for target in ((), ("train@h",)) if "method" in ours else ((),):
            said = study.run(copy, "dvc", "repro", *target, check=False)
            assert f"\nerror: {ours}" in said
            assert study.executed(said) == []
        said = study.run(copy, "python", "-m", "pipeline.cli", "run", check=False)
        assert said.startswith(f"error: {ours}")
        (copy / "params.yaml").write_text(study.PARAMS)
    assert study.tree(copy / "reports") | study.tree(copy / "artifacts") == before
    study.edit(copy, {"penalty: 0.2": "penalti: 0.2"})
    said = study.run(copy, "dvc", "repro", "train@h", check=False)
    assert "params.yaml: methods.hspg.penalti: unknown key; did you mean 'penalty'?" in said
    assert study.tree(copy / "reports") | study.tree(copy / "artifacts") == before


def wait_for(what: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the file is there; fails when the process ends first."""
    for _ in range(3000):
        if what.exists():
            return
        assert process.poll() is None, f"it ended without {what}"
        time.sleep(0.02)
    raise AssertionError(f"{what} did not appear")


def test_kill_nine_then_repro_gives_the_same_bits(finished: Path, tmp_path: Path) -> None:
    # 920 steps after the first checkpoint: seconds, where the kill comes within milliseconds.
    params = study.PARAMS.replace("epochs: 2\n", "epochs: 24\n", 1)
    params = params.replace("batch_size: 50\n", "batch_size: 5\n", 1)
    folder = study.create(tmp_path / "study", params)
    shutil.copytree(finished / "data", folder / "data")
    (folder / "reports/records").mkdir(parents=True)
    shutil.copy(finished / "reports/records/data.json", folder / "reports/records")
    study.run(folder, "dvc", "repro", "-q", "check")
    study.run(folder, "dvc", "commit", "-q", "-f", "prepare-data")
    process = subprocess.Popen(
        ["dvc", "repro", "train@h"],
        cwd=folder,
        env=study.environment(folder, cold=True) | {"SHELL": "/bin/sh"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = folder / ".checkpoints/train/h/last.safetensors"
    wait_for(checkpoint, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    study.wait_until_free(folder, "train@h")
    assert not (folder / "artifacts/train/h").exists(), "it ended although DVC was killed"
    assert load_tree(checkpoint)["counters"]["epoch"] < 24
    assert study.repro(folder, "train@h") == ["train@h"]
    assert not checkpoint.exists()
    weights = study.tree(folder / "artifacts/train/h")
    record = (folder / "reports/records/train/h.json").read_bytes()
    shutil.rmtree(folder / "artifacts")
    (folder / "dvc.lock").unlink()
    study.repro(folder, "--force", "--no-run-cache", "--single-item", "train@h")
    assert study.tree(folder / "artifacts/train/h") == weights
    assert (folder / "reports/records/train/h.json").read_bytes() == record
