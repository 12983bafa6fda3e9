"""Bundles: there, trained on a bare machine, and back; nothing altered is accepted."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.cli.archive import MANIFEST
from tests import study

BUNDLE = ("python", "-m", "pipeline.cli", "bundle")


def rewritten(archive: Path, change) -> Path:
    """The archive with its {name: bytes} changed."""
    with tarfile.open(archive) as tar:
        content = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    change(content)
    out = archive.with_name("changed.tar.gz")
    with tarfile.open(out, "w:gz") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out


def there(folder: Path, *command: str) -> str:
    """Run on a machine without DVC and MLflow."""
    bare = folder.parent / "bare"
    bare.mkdir(exist_ok=True)
    for name in ("mlflow", "dvc"):
        (bare / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    env = study.environment(folder, cold=True) | {
        "PYTHONPATH": f"{bare}:{folder}",
        "ESPALIER_MLFLOW": "off",
    }
    done = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def forged(content: dict[str, bytes]) -> None:
    """Another score in the record, and the manifest made to agree."""
    name = "reports/records/train/a.json"
    record = json.loads(content[name])
    record["weights_sha"] = "0" * 64
    content[name] = (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
    manifest = json.loads(content[MANIFEST])
    digest = hashlib.sha256(content[name]).hexdigest()
    manifest["files"][name] = {"sha256": digest, "size": len(content[name])}
    content[MANIFEST] = json.dumps(manifest).encode()


@pytest.fixture(scope="module")
def travelled(tmp_path_factory):
    """A study, and what came back of its training "a"."""
    base = tmp_path_factory.mktemp("travel")
    folder = study.create(base / "study")
    study.run(folder, "dvc", "repro", "prepare-data")
    study.run(folder, *BUNDLE, "export", "a", "--out", str(base / "go.tar.gz"))
    shutil.unpack_archive(base / "go.tar.gz", base / "away")
    there(base / "away", sys.executable, "-m", "stages.train", "--training", "a")
    there(base / "away", *BUNDLE, "collect", "--out", str(base / "back.tar.gz"))
    return folder, base


@pytest.mark.slow
def test_dvc_accepts_what_came_back_and_the_report_shows_it(travelled, tmp_path):
    shutil.copytree(travelled[0], tmp_path / "study", symlinks=True)
    folder, back = tmp_path / "study", travelled[1] / "back.tar.gz"
    said = study.run(folder, *BUNDLE, "import", str(back))
    assert "finished: a" in said
    ran = study.repro(folder)
    assert "train@a" not in ran
    assert {"train@h", "prune@a-p50", "sweep@a", "report"} <= set(ran)
    assert "a-p50" in (folder / "reports/tables/main.md").read_text()
    record = folder / "reports/records/train/a.json"
    assert record.read_bytes() == (travelled[1] / "away" / record.relative_to(folder)).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update({"artifacts/train/a/spec.json": b"{}"}), "altered"),
        (forged, "not the weights that the record cites"),
    ],
    ids=["altered", "forged"],
)
def test_altered_results_are_refused_and_leave_nothing(travelled, change, told):
    folder, base = travelled
    archive = rewritten(base / "back.tar.gz", change)
    said = study.run(folder, *BUNDLE, "import", "--no-dvc", str(archive), check=False)
    assert told in said
    assert not (folder / "reports/records/train/a.json").exists()
    assert not (folder / "artifacts/train/a").exists()
    assert not list((folder / ".checkpoints").glob("import-*"))


@pytest.mark.slow
def test_an_answer_to_another_question_is_refused(travelled, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(travelled[0], folder, symlinks=True)
    study.edit(folder, {"lr: 0.05": "lr: 0.06"})
    said = study.run(folder, *BUNDLE, "import", str(travelled[1] / "back.tar.gz"), check=False)
    assert "a: its params, data or code are not the ones here" in said


@pytest.mark.slow
def test_an_interrupted_training_travels_on(travelled, tmp_path):
    params = study.PARAMS.replace("  a: {", "  a: {train: {epochs: 3000}, ")
    folder, away = tmp_path / "study", tmp_path / "away"
    shutil.copytree(travelled[0], folder, symlinks=True)
    (folder / "params.yaml").write_text(params)
    study.run(folder, *BUNDLE, "export", "a", "--out", "go.tar.gz")
    shutil.unpack_archive(folder / "go.tar.gz", away)
    slice_of = ("-m", "pipeline.cli", "run", "--budget-minutes", "0.4")
    for _ in range(10):  # on a busy machine a slice may pass before the first step
        done = subprocess.run([sys.executable, *slice_of], cwd=away,
                              env=study.environment(away, cold=True),
                              text=True, capture_output=True, timeout=300)  # fmt: skip
        assert done.returncode == 75, done.stderr[-3000:]
        if (away / ".checkpoints/train/a/last.safetensors").exists():
            break
    there(away, *BUNDLE, "collect", "--out", "back.tar.gz")
    said = study.run(folder, *BUNDLE, "import", str(away / "back.tar.gz"))
    assert "to go on with: a" in said
    assert (folder / ".checkpoints/train/a/last.safetensors").exists()
    assert (folder / ".checkpoints/train/a.events.jsonl").exists()
