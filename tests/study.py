"""A copy of this repository, its studies included, whose default study is a tiny one."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.studies import warm

REPOSITORY = Path(__file__).resolve().parent.parent
LEFT_OUT = re.compile(
    r"(tests|docs|benchmarks|reports/(records|tables|plots))/|params\.yaml$|dvc\.lock$"
    r"|studies/.*/(reports/|dvc\.lock$)"
    r"|reports/papers/(?!oto|pfs)"  # every report would spend seconds on all of them
)  # what a copy of the repository can do without

PARAMS = """\
study: tiny
root: .
data: {name: digits, val_size: 100, limit: 200, split_seed: 0}
train:
  epochs: 2
  batch_size: 50
  optimizer: {name: sgd, lr: 0.05}
  schedule: {name: constant}
  rewind_epoch: 1
finetune: {epochs: 0, start_from: current}
evaluate: {batch_size: 256, latency_batches: [1], latency_repeats: 3}
methods:
  dense: {}
  hspg: {penalty: 0.2, epsilon: 0.9, warmup_fraction: 0.5}
trainings:
  a: {model: {family: small, name: resnet8, width: 4}, method: dense, seed: 0}
  h: {model: {family: small, name: resnet8, width: 4}, method: hspg, seed: 0}
prunings:
  a-p50: {training: a, target: {rule: fraction, value: 0.5}, finetune: {epochs: 1}}
  h-zeros: {training: h, target: {rule: zeros}}
sweep:
  trainings: [a]
  sparsities: [0.5, 0.9]
  ranked: [weights]
  scopes: [global]
  recalibration_batches: 2
"""


def environment(folder: Path, cold: bool = False) -> dict[str, str]:
    """What a stage sees: this interpreter's programs first, the copied code, one thread.

    Args:
        cold: let `python` and `dvc` be processes of their own (see tests/studies/warm.py).
    """
    home = next(p for p in (folder, *folder.parents) if (p / "pipeline").is_dir())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    found = kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ESPALIER_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t",
    }
    if not cold and sys.platform == "linux":
        programs = warm.folder(found)
        found["PATH"] = f"{programs}{os.pathsep}{found['PATH']}"
        found["PYTHON_EXEC"] = str(programs / "python")  # torchrun starts this
    return found


def wait_until_free(folder: Path, instance: str) -> None:
    """Until no process works on a stage instance such as `train@a`: its lock tells."""
    with (folder / f".checkpoints/{instance}.lock").open() as lock:
        for _ in range(3000):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.02)
            else:
                return
    raise AssertionError(f"{instance} outlived the DVC that started it")


def run(folder: Path, *command: str, check: bool = True) -> str:
    """Run a command in the study; returns what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=540,
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-6000:]}")
    return done.stdout


def create(folder: Path, params: str = PARAMS) -> Path:
    """A new study, committed."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(
        listed, cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, names.split("\0")):
        source, copy = REPOSITORY / name, folder / name
        if not LEFT_OUT.match(name) and (source.is_symlink() or source.exists()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy, follow_symlinks=False)
    (folder / "params.yaml").write_text(params)
    run(folder, "git", "init", "-q")
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    """Commit everything."""
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "state")


def repro(folder: Path, *arguments: str) -> list[str]:
    """`dvc repro`; see `executed`."""
    return executed(run(folder, "dvc", "repro", *arguments))


def executed(said: str) -> list[str]:
    """The stages that DVC executed, in order; not those it restored, nor `check`, which is first in
    every run."""
    return [s for s in re.findall(r"^Running stage '([^']+)'", said, re.M) if s != "check"]


def edit(folder: Path, changes: Mapping[str, str]) -> None:
    """Replace text in params.yaml; each key must be there."""
    path = folder / "params.yaml"
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new, 1)
    path.write_text(text)


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by relative name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
