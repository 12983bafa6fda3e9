"""What `bundle import` refuses, although the archive itself is whole: nothing is placed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.cli import archive as archives
from pipeline.cli import bundle_import
from pipeline.cli.archive import below, pack
from pipeline.cli.bundle_import import ask, bring_in
from pipeline.files import DamagedFileError, load_tree, save_tree, tensors_sha256, write_json
from pipeline.study import paths
from pipeline.study.params.load import Params, load_params
from pipeline.study.records.artifacts import TrainArtifact
from pipeline.study.records.record import write_record
from stages.train import draft
from tests import study

PARAMS = study.PARAMS.replace("root: .", f"root: {study.REPOSITORY}")
A, LAST = paths.training("a"), Path(".checkpoints/train/h/last.safetensors")
RECORD = paths.record("train", "a")
EVENT = '{"kind": "note", "time": 1.0, "text": "done"}\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A study; beside it, in `away`, the finished training "a" and a checkpoint of "h"."""
    for name in ("here", "away"):
        (tmp_path / name / paths.PREPARED).mkdir(parents=True)
        (tmp_path / name / paths.CARD).write_text("{}")
        (tmp_path / name / "params.yaml").write_text(PARAMS)
    for name in ("loop_code", "method_code", "code_digest"):  # half a second each
        monkeypatch.setattr(bundle_import, name, lambda *_: {})
    monkeypatch.chdir(tmp_path / "away")
    params = load_params()
    weights = {"w": torch.ones(3)}
    TrainArtifact(A).write_state("final", weights, None)
    TrainArtifact(A).write_state("init", weights, None)
    network = {"family": "small", "name": "resnet8", "args": {"width": 4}}
    write_json(A / "spec.json", {"training": "a", "method": "dense", "seed": 0, "network": network})
    settings = {**vars(draft(params, "a")), "weights_sha": tensors_sha256(weights)}
    write_record(RECORD, type(draft(params, "a"))(**settings))
    save_tree(LAST, {"counters": {"step": 3}, "snapshots": ["init"]})
    save_tree(LAST.parent / "snapshots/init.safetensors", {"model": weights})
    write_json(LAST.parent / "inputs.json", {})
    for events in (paths.events("train", "a"), Path(".checkpoints/train/h.events.jsonl")):
        events.parent.mkdir(parents=True, exist_ok=True)
        events.write_text(EVENT)
    monkeypatch.chdir(tmp_path / "here")
    return load_params()


def packed(params: Params, **manifest: object) -> Path:
    """The files of `away`, under a manifest that lists every one of them as it is."""
    away = Path("../away")
    files = {k: v for part in ("artifacts", "reports", ".checkpoints")
             for k, v in below(away / part, away).items()}  # fmt: skip
    answer = {"study": "tiny", "ask": {k: ask(params, k) for k in "ah"},
              "finished": ("a",), "unfinished": ("h",)}  # fmt: skip
    pack(Path("../back.tar.gz"), {**answer, **manifest}, files, {})
    return Path("../back.tar.gz")


def refused(params: Params, archive: Path) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (both kinds are)
        bring_in(params, archive)
    assert str(error.value).startswith(f"{archive}: ")
    assert "import-" not in str(error.value)  # names what the user has, not a temporary folder
    assert not Path("artifacts").exists()
    assert not Path("reports").exists()
    assert not list(Path(".checkpoints").iterdir())
    return str(error.value)


def test_what_came_back_is_in_its_place(here: Params) -> None:
    (A / "old").mkdir(parents=True)  # of an earlier run
    assert bring_in(here, packed(here)) == (["a"], ["h"])
    for part in ("artifacts", "reports"):
        assert study.tree(Path(part)) == study.tree(Path("../away") / part)
    assert study.tree(LAST.parent) == study.tree(Path("../away") / LAST.parent)
    assert Path(".checkpoints/train/h.events.jsonl").read_text() == EVENT


MANIFESTS: dict[str, tuple[dict[str, object], str]] = {
    "exported": ({"finished": None, "unfinished": None}, "bundle.json: no results: import what"),
    "unknown": ({"finished": ("a", "b")}, "bundle.json: 'b' is no training here; (known: a, h)"),
    "twice": ({"finished": ("a", "a")}, "bundle.json: a: listed twice"),
    "both": ({"unfinished": ("h", "a")}, "bundle.json: a: listed twice"),
    "not asked": ({"ask": {}}, "a: its params, data or code are not the ones here"),
    "asked otherwise": ({"ask": dict.fromkeys("ah", "0" * 64)}, "a: its params, data or code"),
    "asked, no result": ({"finished": ()}, "bundle.json: ask: 'a' came back with no result"),
}


@pytest.mark.parametrize("fault", MANIFESTS)
def test_a_manifest_that_answers_something_else_is_refused(here: Params, fault: str) -> None:
    changes, told = MANIFESTS[fault]
    assert told in refused(here, packed(here, **changes))


def rewrite(path: Path, **changes: object) -> Callable[[], object]:
    def change() -> None:
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | changes, sort_keys=True, indent=2) + "\n")

    return change


def added(name: str) -> Callable[[], object]:
    def change() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")

    return change


def step(value: object) -> Callable[[], object]:
    tree = {"counters": {"step": value}, "snapshots": []}
    return lambda: save_tree(LAST, tree)


FILES: dict[str, tuple[Callable[[], object], str]] = {
    "no record": (RECORD.unlink, f"{RECORD}: missing"),
    "no weights": ((A / "final/model.safetensors").unlink, f"{A}/final/model.safetensors: missing"),
    "no checkpoint": (LAST.unlink, f"{LAST}: missing"),
    "no snapshot": (lambda: shutil.rmtree(LAST.parent / "snapshots"),
                    f"{LAST}: its snapshot 'init' is missing"),
    "a file of another training": (added("artifacts/train/h/spec.json"),
                                   "artifacts/train/h/spec.json: does not belong there"),
    "a file of no kind": (added(f"{A}/run.py"), f"{A}/run.py: does not belong there"),
    "a hidden folder": (added(f"{LAST.parent}/.git/config.json"), "does not belong there"),
    "a record as a list": (lambda: RECORD.write_text("[]"), f"{RECORD}: not a TrainRecord"),
    "a record of null": (lambda: RECORD.write_text("null"), f"{RECORD}: not a TrainRecord"),
    "a record by hand": (lambda: RECORD.write_text(RECORD.read_text() + " "),
                         f"{RECORD}: edited by hand"),
    "another seed": (rewrite(RECORD, seed=1), f"{RECORD}: seed: 1 in the record, 0 in params.yaml"),
    "another training": (rewrite(RECORD, training="h"), f"{RECORD}: training: 'h' in the record"),
    "other weights": (rewrite(RECORD, weights_sha="0" * 64),
                      f"{A}/final/model.safetensors: not the weights that the record cites"),
    "a state of another": (
        lambda: save_tree(A / "init/model.safetensors", {"w": torch.zeros(3)}),
        f"{A}/init/model.safetensors: not the weights that this training left as 'init'"),
    "a state that is not listed": (
        lambda: save_tree(A / "best/model.safetensors", {"w": torch.ones(3)}),
        f"{A}/best/model.safetensors: not the weights that this training left as 'best'"),
    "hashes as a list": (lambda: (A / "states.json").write_text("[]"),
                         f"{A}/final/model.safetensors: "),
    "a spec as a list": (lambda: (A / "spec.json").write_text("[]"), f"{A}/spec.json: "),
    "a spec of null": (lambda: (A / "spec.json").write_text("null"), f"{A}/spec.json: "),
    "a spec without a network": (rewrite(A / "spec.json", network=None), f"{A}/spec.json: "),
    "a spec of another": (rewrite(A / "spec.json", training="h"),
                          f"{A}/spec.json: of another training than its record"),
    "nested JSON": (lambda: (A / "more.json").write_text("[" * 10**5), f"{A}/more.json: "),
    "weights of text": (lambda: (A / "final/model.safetensors").write_text("no"),
                        f"{A}/final/model.safetensors: damaged"),
    "weights as a list": (lambda: save_tree(A / "final/model.safetensors", [torch.ones(3)]),
                          f"{A}/final/model.safetensors: not a mapping"),
    "a damaged snapshot": (lambda: (LAST.parent / "snapshots/init.safetensors").write_bytes(b"0"),
                           f"{LAST.parent}/snapshots/init.safetensors: damaged"),
    "a checkpoint of text": (lambda: LAST.write_text("no"), f"{LAST}: damaged"),
    "a checkpoint without counters": (lambda: save_tree(LAST, {"snapshots": []}), f"{LAST}: "),
    "a checkpoint as a list": (lambda: save_tree(LAST, []), f"{LAST}: not a mapping"),
    "a step of text": (step("3"), f"{LAST}: counters: step: '3' is no number"),
    "a negative step": (step(-1), f"{LAST}: counters: step: negative"),
    "a lineage of nothing": (lambda: write_json(LAST.parent / "lineage.json", {}),
                             f"{LAST.parent}/lineage.json: "),
    "events of text": (lambda: paths.events("train", "a").write_text("no\n"),
                       f"{paths.events('train', 'a')}: , line 1: damaged event"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_not_what_it_says_is_refused(
    here: Params, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, told = FILES[fault]
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir("../away")
        change()
    assert told.replace(": , line", ", line") in refused(here, packed(here))


def test_a_small_archive_of_a_large_size_writes_nothing(
    here: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_extract", pytest.fail)
    with pytest.raises(DamagedFileError, match="unpacks to .* more than 1000"):
        bring_in(here, packed(here), 1000)


def test_a_checkpoint_that_is_further_stays(here: Params) -> None:
    save_tree(LAST, {"counters": {"step": 4}, "snapshots": []})
    bring_in(here, packed(here))
    assert load_tree(LAST)["counters"]["step"] == 4


def test_a_damaged_checkpoint_here_is_named_before_anything_is_placed(here: Params) -> None:
    LAST.parent.mkdir(parents=True)
    LAST.write_text("no")
    with pytest.raises(DamagedFileError, match=f"^{LAST}: damaged"):
        bring_in(here, packed(here))
    assert not Path("artifacts").exists()


def test_a_disk_that_fills_while_placing_loses_no_earlier_result(
    here: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_in(here, packed(here))
    before = study.tree(Path("artifacts"))

    def full(source: Path, beside: Path) -> None:
        beside.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_import.shutil, "move", full)
    with pytest.raises(OSError, match="No space left"):
        bring_in(here, packed(here))
    assert study.tree(Path("artifacts")) == before
