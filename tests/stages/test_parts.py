"""A study in several folders: each part runs by itself, the report of the whole covers them all."""

from __future__ import annotations

import importlib
import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.runner.task import Outcome, Task
from pipeline.study import paths
from pipeline.study.execution import report_state
from pipeline.study.params.load import ParamsError, load_params
from pipeline.study.records.agreement import require_agreement
from stages.report import delivered
from stages.report import study as asked_for

run_module = importlib.import_module("pipeline.cli.run")
ROOT = Path(__file__).resolve().parents[2]
EMPTY = "sweep: {trainings: []}\ntrainings: {}\nprunings: {}\n"


def block(params: str, name: str) -> str:
    """A top-level block of a params file."""
    lines = params.splitlines(keepends=True)
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
    end = next(i for i in range(start + 1, len(lines)) if lines[i].strip() and lines[i][0] != " ")
    return "".join(lines[start:end])


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose only part is the default study."""
    part, params = tmp_path / "one", (ROOT / "params.yaml").read_text(encoding="utf-8")
    shutil.copytree(ROOT / paths.RECORDS, part / paths.RECORDS)
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(ROOT / name, part)
    (tmp_path / paths.RECORDS).mkdir(parents=True)
    shutil.copy(ROOT / paths.DATA_RECORD, tmp_path / paths.DATA_RECORD)
    name = load_params(ROOT / "params.yaml").file.study
    shared = f"{block(params, 'data')}\n{block(params, 'train')}\n{EMPTY}"
    text = f"study: {name}\nroot: .\nparts: [one]\nmethods: {{}}\n{shared}"
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_report_covers_the_parts(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params()
    require_agreement(params)
    found = asked_for(params)
    monkeypatch.chdir(ROOT)
    alone = asked_for(load_params())
    assert [e.key for e in found.prunings] == [e.key for e in alone.prunings] != []
    monkeypatch.chdir(whole)
    shas = {key: [view.sha for view in views] for key, views in found.views.items()}
    monkeypatch.chdir(ROOT)
    assert shas == {key: [view.sha for view in views] for key, views in alone.views.items()}


def test_what_a_part_delivers_is_delivered_by_the_whole(whole: Path) -> None:
    path = whole / "one/params.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\ndeliver: [vgg-hspg-s0]\n", encoding="utf-8")
    assert delivered(load_params()) == {"vgg-hspg-s0": Path("one/artifacts/finetune/vgg-hspg-s0")}


class Recorder:
    """A project and an engine whose stages only say where they ran."""

    workers, resubmits = 1, False

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.code = 0

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None: ...
    def tasks(self) -> dict[str, Task]:
        return {n: Task(n, "none") for n in ("prepare-data", "report")}

    def begin(self, name: str) -> None: ...
    def done(self, name: str) -> None: ...
    def flush(self) -> None: ...
    def kill(self) -> None: ...
    def submit(self, task: Task) -> Future[int]:
        self.ran.append((Path.cwd().name, task.name))
        ended: Future[int] = Future()
        ended.set_result(self.code)
        return ended


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    for name in ("open_project", "made_engine"):
        monkeypatch.setattr(run_module, name, lambda *_: made)
    monkeypatch.setattr(run_module, "ending", lambda _: "the end")
    return made


def test_espalier_run_runs_the_parts_and_one_report(whole: Path, recorder: Recorder) -> None:
    done = CliRunner().invoke(run_module.run, [str(whole)])
    assert done.exit_code == 0, done.output
    assert recorder.ran == [
        ("one", "prepare-data"),
        (whole.name, "prepare-data"),
        (whole.name, "report"),
    ]
    said = done.output.splitlines()
    assert said.index("one:") < said.index("the whole:") < said.index("the end")


def test_espalier_run_leaves_parts_alone_where_stages_are_named(
    whole: Path, recorder: Recorder
) -> None:
    CliRunner().invoke(run_module.run, [str(whole), "--only", "report", "--single"])
    assert recorder.ran == [(whole.name, "report")]


def test_a_part_that_fails_keeps_the_report_from_running(whole: Path, recorder: Recorder) -> None:
    recorder.code = 1
    done = CliRunner().invoke(run_module.run, [str(whole)])
    assert done.exit_code == 1
    assert recorder.ran == [("one", "prepare-data")]


def test_a_stop_ends_the_run_although_a_stage_failed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(name).mkdir()
    ran = []

    def outcomes_of(part: object, unless: str) -> dict[str, Outcome]:
        ran.append(part)
        return {"train@a": Outcome.FAILED, "train@b": Outcome.STOPPED}

    ended = run_module.run_parts({Path("one"): 1, Path("two"): 2}, outcomes_of)
    assert ran == [1]
    assert run_module.exit_code(ended, timed=True) == 1


def test_a_part_of_something_else(whole: Path) -> None:
    part = whole / "one/params.yaml"
    kept = part.read_text(encoding="utf-8")
    name = load_params().file.study
    for old, new, told in (
        (f"study: {name}", "study: other", "one/params.yaml: study: 'other', and it is a part of"),
        ("val_size: 200", "val_size: 100", "one/params.yaml: data: not that of params.yaml"),
        ("root: .", "parts: [two]\nroot: .", "one/params.yaml: parts: a part has none; list"),
    ):
        edit(part, old, new)
        with pytest.raises(ParamsError, match=told):
            load_params()
        part.write_text(kept, encoding="utf-8")
    shutil.copytree(whole / "one", whole / "two")
    edit(whole / "params.yaml", "[one]", "[one, two]")
    with pytest.raises(ParamsError, match=r"two/params.yaml: trainings.\S+: one/params.yaml has"):
        load_params()


def test_a_part_that_is_missing_or_listed_twice(whole: Path) -> None:
    listed = "[one]"
    for parts, told in (
        ("[one, two]", "params.yaml: parts: two/params.yaml is missing"),
        ("[one, one]", "params.yaml: parts: 'one' is there twice"),
    ):
        edit(whole / "params.yaml", listed, parts)
        with pytest.raises(ParamsError, match=f"^{told}"):
            load_params()
        listed = parts


def test_records_of_a_part_that_disagree(whole: Path) -> None:
    record = next((whole / "one" / paths.RECORDS / "train").glob("*.json"))
    kept = record.read_bytes()
    record.write_bytes(kept + b" ")
    with pytest.raises(ValueError, match=r"in one: .*: not the file that dvc.lock lists"):
        require_agreement(load_params())
    assert report_state.records_differ(Path("one"))
    record.write_bytes(kept)
    assert not report_state.records_differ(Path("one"))
    edit(whole / paths.DATA_RECORD, '"card_sha": "', '"card_sha": "0')
    with pytest.raises(ValueError, match="one/reports/records/data.json: other data than"):
        require_agreement(load_params())


def test_no_report_is_current_for_parts_of_the_wrong_type(whole: Path) -> None:
    for folder in ("tables", "plots"):
        (whole / "reports" / folder).mkdir()
    report_state.STATE.parent.mkdir()
    report_state.STATE.write_text("{}", encoding="utf-8")
    edit(whole / "params.yaml", "[one]", "5")
    assert not report_state.is_current()


def test_a_report_is_not_current_after_a_part_changed(whole: Path) -> None:
    before = report_state.inputs()
    edit(whole / "one/params.yaml", "study:", "# a comment\nstudy:")
    assert report_state.inputs() != before
