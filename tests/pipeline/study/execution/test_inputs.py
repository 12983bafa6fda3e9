"""An edit of an input while a stage runs gives one error and no record; other edits do not."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from pipeline.data.config import DataConfig
from pipeline.data.prepare import prepare
from pipeline.study import paths
from pipeline.study.execution.inputs import _code as code_of
from pipeline.study.params.load import load_params
from tests.pipeline.study.params.test_pipeline_reads import COMPLETE

ROOT = Path(__file__).resolve().parents[4]
INSTANCES = {
    "prepare_data": (),
    "train": ("--training", "a"),
    "prune": ("--pruning", "p"),
    "finetune": ("--pruning", "p"),
    "evaluate": ("--pruning", "p"),
    "sweep": ("--training", "a"),
    "connect": ("--pair", "l"),
    "report": (),
}
READ = {  # a value that each stage reads, and its edit
    "prepare_data": ("val_size: 200", "val_size: 100", "data.val_size: changed from 200 to 100"),
    "train": ("epochs: 6", "epochs: 7", "train.epochs: changed from 6 to 7"),
    "prune": ("value: 0.5", "value: 0.6", "prunings.p.target.value: changed from 0.5 to 0.6"),
    "finetune": ("finetune: {epochs: 0", "finetune: {epochs: 3", "finetune.epochs: changed from 0"),
    "evaluate": ("batch_size: 256", "batch_size: 128", "evaluate.batch_size: changed from 256"),
    "sweep": ("ties: [0.5]", "ties: [0.6]", "sweep.sparsities: changed from [0.5] to [0.6]"),
    "connect": ("points: 11", "points: 13", "connect.points: changed from 11 to 13"),
    "report": ("study: t", "study: u", "study: changed from 't' to 'u'"),
}
STAGES = sorted(INSTANCES)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with code of its own and prepared data."""
    folder = tmp_path_factory.mktemp("study")
    for room in ("pipeline", "stages", "methods", "models"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "params.yaml").write_text(COMPLETE)
    prepare(DataConfig(name="digits", val_size=200), folder / paths.PREPARED)
    return folder


@pytest.fixture
def study(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(original, tmp_path / "s")
    monkeypatch.chdir(tmp_path / "s")
    monkeypatch.setattr(paths, "CODE", tmp_path / "s")  # as if Python ran it
    monkeypatch.setenv("ESPALIER_MLFLOW", "off")
    monkeypatch.delenv("ESPALIER_DEBUG", raising=False)
    return tmp_path / "s"


def run(
    stage: str, monkeypatch: pytest.MonkeyPatch, edit: Callable[[], Any]
) -> tuple[int, str, list]:
    """The stage with `edit` in place of its work; exit code, last line, records written."""
    module = importlib.import_module(f"stages.{stage}")
    written: list[Path] = []
    work = "prepare" if stage == "prepare_data" else "run"

    class Found:
        points = ()
        kept = total = 0

    def worked(*_: Any) -> type[Found]:
        edit()
        return Found

    monkeypatch.setattr(module, work, worked)
    monkeypatch.setattr(module, "write_record", lambda path, _: written.append(path), raising=False)
    monkeypatch.setattr(module, "train_view", lambda _: None, raising=False)
    monkeypatch.setattr(module, "clock", lambda *_: None, raising=False)
    monkeypatch.setattr(module, "require_same_images", lambda _: None, raising=False)
    result = CliRunner().invoke(module.main, list(INSTANCES[stage]))
    lines = [line for line in result.output.splitlines() if "error: " in line]
    assert "Traceback" not in result.output
    return result.exit_code, "\n".join(lines), written


def refused(told: tuple[int, str, list]) -> str:
    code, line, written = told
    assert (code, written) == (1, [])
    assert line.startswith("error: ")
    assert "ran, so its result was not recorded" in line
    return line.removeprefix("error: ")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("stage", STAGES)
def test_an_edit_of_params(stage: str, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, told = READ[stage]
    edit = lambda: replace(study / "params.yaml", old, new)  # noqa: E731
    assert refused(run(stage, monkeypatch, edit)).startswith(f"params.yaml: {told}")


@pytest.mark.parametrize("stage", STAGES)
def test_an_edit_that_breaks_params(
    stage: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = lambda: replace(study / "params.yaml", "study:", "stady:")  # noqa: E731
    assert "stady: unknown key" in refused(run(stage, monkeypatch, edit))


@pytest.mark.parametrize("stage", STAGES)
def test_an_edit_of_code(stage: str, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"stages/{stage}.py", "pipeline/data/prepare.py"]
    files += ["methods/dense/method.py", "models/small.py"] if stage == "train" else []
    for file in files:
        edit = lambda file=file: replace(study / file, "\n\n\n", "\n\nMORE = 1\n\n")  # noqa: E731
        assert refused(run(stage, monkeypatch, edit)).startswith(f"{file}: changed while")


def test_an_edit_of_the_recipe_that_a_retraining_inherits(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = lambda: replace(study / "params.yaml", "epochs: 6", "epochs: 6, mixup: 0.1")  # noqa: E731
    told = refused(run("finetune", monkeypatch, edit))
    assert told.startswith("params.yaml: recipe.mixup: changed from nothing to 0.1")


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "train"])
def test_a_method_decides_trainings_only(
    stage: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in dvc.yaml: other stages read what a method left in its artefact."""
    edit = lambda: replace(study / "methods/dense/method.py", "\n\n\n", "\n\nMORE = 1\n\n")  # noqa: E731
    assert run(stage, monkeypatch, edit)[:2] == (0, "")


@pytest.mark.parametrize("stage", STAGES)
def test_all_code_that_dvc_hashes_is_compared(stage: str, study: Path) -> None:
    name, key = stage.replace("_", "-"), (*INSTANCES[stage], "", "")[1]
    entry = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"][name]
    values = {"code": ".", "item.method": "dense", "item.model.family": "small"}
    places = {
        re.sub(r"\$\{([\w.]+)\}", lambda found: values[found[1]], place)
        for place in entry.get("do", entry).get("deps", ())
        if place.startswith("${code}/")
    }
    compared = {path.as_posix() for path in code_of(load_params(), name, key)}
    for place in places:
        files = [Path(place)] if Path(place).is_file() else Path(place).rglob("*.py")
        hashed = {path.as_posix() for path in files}
        assert hashed
        assert hashed <= compared, place


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "prepare_data"])
def test_an_edit_of_the_data_card(stage: str, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = lambda: replace(study / paths.CARD, '"digits"', '"digit"')  # noqa: E731
    assert refused(run(stage, monkeypatch, edit)).startswith("data/prepared/card.json: changed")


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_of_another_checkout(
    stage: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkouts that share an environment: DVC would hash one and Python run the other."""
    monkeypatch.setattr(paths, "CODE", ROOT)
    code, said, written = run(stage, monkeypatch, lambda: None)
    assert code == 0, "the same code in two places"
    with (study / "pipeline/files.py").open("a") as file:
        file.write("MORE = 1\n")
    code, said, written = run(stage, monkeypatch, lambda: pytest.fail("it began to work"))
    assert (code, written) == (1, [])
    assert said == (
        f"error: pipeline/files.py: the code of this study, but Python runs {ROOT}/pipeline/"
        f"files.py, which is other code: use the environment of the first, or set "
        f"PYTHONPATH={study}"
    )


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, and what prepare-data makes of it, in `prepared`."""
    root = tmp_path_factory.mktemp("images")
    for number in range(4):
        for part in ("train", "val"):
            place = root / f"images/{part}/class-{number % 2}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(place)
    config = DataConfig(name="imagefolder", root=str(root / "images"), size=8)
    prepare(config, root / "prepared")
    return root


@pytest.mark.parametrize("stage", STAGES)
def test_an_edit_of_an_image(
    stage: str, study: Path, folder_of_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(study / paths.PREPARED)
    shutil.copytree(folder_of_images / "prepared", study / paths.PREPARED)
    image = folder_of_images / "images/val/class-0/0.png"
    before = image.read_bytes()
    try:
        line = refused(run(stage, monkeypatch, lambda: image.write_bytes(before[:-9])))
    finally:
        image.write_bytes(before)
    assert f"{folder_of_images}/images: its images changed after prepare-data: 1 replaced" in line
    assert "val/class-0/0.png" in line


@pytest.mark.parametrize("stage", STAGES)
def test_what_decides_nothing_may_change(
    stage: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit() -> None:
        replace(study / "params.yaml", "study: t", "study: t\n# a comment\ncompute: {threads: 2}")
        replace(study / f"stages/{stage}.py", "\n\n\n", "\n\n\n# a comment\n")

    code, line, _ = run(stage, monkeypatch, edit)
    assert "changed" not in line
    assert code == 0, line


def test_the_checkpoint_is_kept_and_named(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = paths.checkpoints("train", "a")

    def edit() -> None:
        checkpoint.mkdir(parents=True)
        replace(study / "params.yaml", "epochs: 6", "epochs: 7")

    line = refused(run("train", monkeypatch, edit))
    assert f"its checkpoint is kept in {checkpoint}" in line
    assert checkpoint.is_dir()
