"""`espalier check`, and the two documents it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.cli import check
from pipeline.cli.main import espalier
from pipeline.cli.params_page import json_schema, page
from pipeline.study import paths
from pipeline.study.params.load import load_params
from pipeline.study.records.data import DataRecord
from pipeline.study.records.record import write_record
from tests.pipeline.study.params.test_pipeline_reads import COMPLETE

ROOT = Path(__file__).resolve().parents[3]
DEFINITIONS = json_schema()["$defs"]
FILES = sorted([ROOT / "params.yaml", *ROOT.glob("studies/**/params.yaml")])


def test_the_page_and_the_schema_are_true() -> None:
    way_out = "run `espalier check --write-docs`"
    assert (ROOT / check.PAGE).read_text() == page(), way_out
    assert json.loads((ROOT / check.SCHEMA).read_text()) == json_schema(), way_out
    assert (
        (ROOT / "params.yaml")
        .read_text()
        .startswith(f"# yaml-language-server: $schema={check.SCHEMA}\n")
    )


KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
         "integer": int, "number": (int, float)}  # fmt: skip


def test_a_key_is_explained_in_its_row() -> None:
    text = (ROOT / check.PAGE).read_text()
    assert "Attributes:" not in text
    assert "| `round_to` | integer >= 1 | `1` | structured: the channels kept per group are" in text
    assert "| `sweep` | a block | its defaults | One-shot pruning of finished trainings" in text
    assert '"best-&lt;phase>"' in text  # not a tag
    rows = [re.split(r"(?<!\\)\|", row) for row in re.findall(r"^\| `.*\|$", text, re.M)]
    assert [row for row in rows if len(row[-2].strip()) < 10] == []


def test_an_editor_shows_what_a_key_means() -> None:
    schema = json_schema()
    blocks = {**DEFINITIONS, "params.yaml": schema}
    blocks |= schema["properties"]["methods"]["properties"]
    for name, block in blocks.items():
        for key, value in block.get("properties", {}).items():
            if name != "Statistics":
                assert value["description"], f"{name}.{key}"
    penalty = blocks["hspg"]["properties"]["penalty"]
    assert penalty["description"] == "lambda, the weight of the group norms."
    assert "never a residual" in blocks["hspg"]["properties"]["groups"]["description"]  # inherited


def faults(value: Any, rule: Any = None, where: str = "") -> Iterator[str]:
    """What a validator of JSON schemas says, for the keywords that ours uses."""
    rule = json_schema() if rule is None else rule
    if "$ref" in rule:
        rule = DEFINITIONS[rule["$ref"].rpartition("/")[2]]
    for word in ("anyOf", "oneOf"):
        if word in rule and not any(not list(faults(value, r)) for r in rule[word]):
            yield f"{where}: nothing of {word}"
    kind = rule.get("type")
    is_number = isinstance(value, bool) and kind in ("integer", "number")
    if kind and (is_number or not isinstance(value, KINDS[kind])):
        yield f"{where}: no {kind}"
    elif value not in rule.get("enum", [value]) or value != rule.get("const", value):
        yield f"{where}: unknown word"
    elif isinstance(value, dict):
        yield from in_block(value, rule, where)
    elif isinstance(value, list) and isinstance(rule.get("items"), dict):
        for i, below in enumerate(value):
            yield from faults(below, rule["items"], f"{where}.{i}")


def in_block(block: dict[str, Any], rule: Any, where: str) -> Iterator[str]:
    known, rest = rule.get("properties", {}), rule.get("additionalProperties", True)
    yield from (f"{where}.{key}: missing" for key in rule.get("required", ()) if key not in block)
    for key, below in block.items():
        if key not in known and rest is False:
            yield f"{where}.{key}: unknown"
        elif key in known or isinstance(rest, dict):
            yield from faults(below, known.get(key, rest), f"{where}.{key}")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_every_study_fits_the_schema_of_editors(path: Path) -> None:
    assert list(faults(YAML(typ="safe").load(path.read_text()))) == []


def test_an_editor_marks_a_typo() -> None:
    content = YAML(typ="safe").load(COMPLETE)
    content["train"]["epoch"] = 3
    content["methods"]["dens"] = {}
    assert list(faults(content)) == [".train.epoch: unknown", ".methods.dens: unknown"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(COMPLETE)
    return tmp_path


def said(monkeypatch: pytest.MonkeyPatch, changed: list[str] | None) -> str:
    monkeypatch.setattr(check, "changed_stages", lambda: changed)
    result = CliRunner().invoke(espalier, ["check"])
    assert result.exit_code == 0, result.output
    return result.output


def test_what_follows_from_a_change() -> None:
    params = load_params(ROOT / "params.yaml")
    key = "resnet8-snip-s0"
    own = [f"train@{key}", f"prune@{key}", f"finetune@{key}", f"evaluate@{key}"]
    assert check.following(params, [own[0]]) == own
    assert check.following(params, [own[2]]) == own[2:]
    assert check.following(params, []) == []
    assert len(check.following(params, ["prepare-data"])) == 1 + 12 + 3 * 13 + 3


def test_the_cost_is_epochs_times_examples_times_macs(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "up to date" in said(monkeypatch, [])
    assert "known after `dvc repro prepare-data`" in said(monkeypatch, ["train@b"])
    write_record(paths.DATA_RECORD, DataRecord("digits", (1, 8, 8), 10, {"train": 1000}, "x"))
    told = said(monkeypatch, ["train@b"])
    assert "would run 2 stages: train, connect" in told
    macs = 763_520  # of resnet8 on digits, as its record says
    assert f"train@b {' ' * 41}6 epochs  {3 * 6 * 1000 * macs:9.2e} MACs" in told
    assert f"together about {3 * 6 * 1000 * macs:.2e} MACs" in told
    assert "no DVC project here" in said(monkeypatch, None)


def test_parts_are_checked_with_the_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (study / "one").mkdir()
    (study / "params.yaml").rename(study / "one/params.yaml")
    content = YAML(typ="safe").load(COMPLETE)
    own = {key: content[key] for key in ("study", "root", "data", "train") if key in content}
    empty = {"methods": {}, "trainings": {}, "prunings": {}, "sweep": {"trainings": []}}
    with (study / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(own | empty | {"parts": ["one"]}, file)
    told = said(monkeypatch, ["train@b"]).splitlines()
    assert told[:2] == ["params.yaml: valid (1 part)", "up to date: `dvc repro` would only report"]
    assert told[2].startswith("one/params.yaml: valid (2 trainings, ")
    assert told[3].startswith("`dvc repro` would run 2 stages: train, connect")


def test_it_lists_all_that_is_wrong(study: Path) -> None:
    (study / "params.yaml").write_text(COMPLETE.replace("epochs: 6", "epoch: 6, batch_size: x"))
    result = CliRunner().invoke(espalier, ["check"])
    assert result.exit_code == 1
    keys = re.findall(r"^error: params\.yaml: ([\w.]+): ", result.output, re.MULTILINE)
    assert sorted(keys) == ["train.batch_size", "train.epoch", "train.epochs"]


def test_outside_a_project_dvc_says_so(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(study))
    assert check.changed_stages() is None
