"""SQuAD: the official files and no others; splits by article; batches that resume."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

import pipeline.data.squad.questions as squad
from pipeline.data.batches import Part
from pipeline.data.config import DataConfig
from pipeline.data.files import DataError
from pipeline.data.loaders import make_eval_batches, make_train_batches
from pipeline.data.prepare import prepare
from pipeline.data.prepared import load_prepared
from pipeline.data.squad.features import load_tokenizer
from pipeline.data.squad.questions import draw_questions, load_squad, read_questions
from tests.squad_world import config, paragraph, squad_json


def official(monkeypatch: pytest.MonkeyPatch, site: Path) -> DataConfig:
    """`site` is the official site, and what lies there is official."""
    site.mkdir()
    files = {}
    for split, (name, _) in squad.OFFICIAL.items():
        (site / name).write_text(json.dumps(squad_json(3)))
        files[split] = (name, hashlib.md5((site / name).read_bytes()).hexdigest())
    monkeypatch.setattr(squad, "URL", site.as_uri() + "/")
    monkeypatch.setattr(squad, "OFFICIAL", files)
    block = {"tokenizer": "unused"}
    return DataConfig.model_validate({"name": "squad", "root": "", "squad": block})


def test_the_official_files_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    asked = official(monkeypatch, tmp_path / "site").model_copy(
        update={"root": str(tmp_path / "raw")}
    )
    raw = load_squad(asked)
    assert len(raw.train) == len(raw.test) == 24
    assert sorted(raw.sources) == ["dev-v1.1.json", "train-v1.1.json"]
    monkeypatch.setattr(squad, "URL", "file:///nowhere/")
    assert load_squad(asked).sources == raw.sources
    (tmp_path / "raw" / "train-v1.1.json").write_text("{}")
    with pytest.raises(DataError, match="train-v1.1.json: its md5 is .*official"):
        load_squad(asked)


def test_a_site_that_is_away_leaves_nothing_and_says_the_way_out(tmp_path, monkeypatch):
    asked = official(monkeypatch, tmp_path / "site").model_copy(
        update={"root": str(tmp_path / "raw")}
    )
    monkeypatch.setattr(squad, "URL", (tmp_path / "away").as_uri() + "/")
    with pytest.raises(DataError, match="put train-v1.1.json into .* yourself"):
        load_squad(asked)
    assert not list((tmp_path / "raw").glob("*"))
    with pytest.raises(DataError, match="data.download: true"):
        load_squad(asked.model_copy(update={"download": False}))


def test_reconstructed_files_go_by_their_own_name_only(root, tokenizer):
    assert len(load_squad(config(root, tokenizer)).train) == 48
    for path in root.glob("*.json"):
        path.rename(path.with_name(path.name.replace(".reconstructed", "")))
    with pytest.raises(DataError, match=r"train-v1.1.reconstructed.json is missing"):
        load_squad(config(root, tokenizer))
    with pytest.raises(DataError, match="squad_reconstructed"):
        load_squad(config(root, tokenizer, name="squad", download=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("data"), "not a SQuAD"),
        (lambda d: d["data"][0]["paragraphs"][0]["qas"][0].update(answers=[]), "no answer"),
        (lambda d: d["data"].append(d["data"][0]), "is there twice"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, change, message):
    content = squad_json(2)
    change(content)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"x.json: .*{message}"):
        list(read_questions(path))


def test_validation_is_whole_articles_and_limits_are_drawn_from_all(root, tokenizer):
    raw = load_squad(config(root, tokenizer))
    asked = config(root, tokenizer, {"dev_limit": 6}, val_size=10, limit=12)
    splits = draw_questions(asked, raw).splits
    held = {q.article for q in splits["validation"]}
    assert len(splits["validation"]) == 16  # two articles of eight: the first that hold ten
    assert not held & {q.article for q in splits["train"]}
    assert len(splits["train"]) == 12
    assert [sum(q.article == a for q in splits["train"]) for a in set(range(6)) - held] == [3] * 4
    assert [sum(q.article == a for q in splits["test"]) for a in (0, 1)] == [3, 3]
    assert draw_questions(asked, raw).splits == splits
    other = draw_questions(asked.model_copy(update={"split_seed": 1}), raw).splits
    assert other["validation"] != splits["validation"]
    for key, block in (("val_size", {"val_size": 49}), ("limit", {"limit": 49})):
        with pytest.raises(DataError, match=key):
            draw_questions(config(root, tokenizer, **block), raw)


def test_misplaced_and_guessed_answers_are_left_out_and_counted(root, tokenizer):
    path = root / "train-v1.1.reconstructed.json"
    content = json.loads(path.read_text())
    qas = content["data"][0]["paragraphs"][0]["qas"]
    qas[0]["answers"][0]["answer_start"] += 1
    qas[1]["answers"][0]["start_guessed"] = True
    path.write_text(json.dumps(content))
    raw = load_squad(config(root, tokenizer))
    assert draw_questions(config(root, tokenizer), raw).dropped == {"misplaced": 1, "guessed": 0}
    drawn = draw_questions(config(root, tokenizer, {"drop_guessed": True}), raw)
    assert drawn.dropped == {"misplaced": 1, "guessed": 1}
    assert len(drawn.splits["train"]) == 46


@pytest.fixture
def prepared(root: Path, tokenizer: str, tmp_path: Path):
    prepare(config(root, tokenizer, val_size=8), tmp_path / "out")
    return load_prepared(tmp_path / "out")


def test_prepared_again_gives_the_same_bytes(prepared, root, tokenizer, tmp_path):
    prepare(config(root, tokenizer, val_size=8), tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_card_says_what_it_is_made_of(prepared, tokenizer):
    card = prepared.card
    assert card["name"] == "squad_reconstructed"
    assert card["reconstructed"] is True
    assert prepared.info.input_shape == (3, 32)
    assert card["counts"]["train"]["questions"] == 40
    assert card["counts"]["validation"]["questions"] == 8
    digest = hashlib.sha256((Path(tokenizer) / "tokenizer.json").read_bytes()).hexdigest()
    assert card["tokenizer"]["files"]["tokenizer.json"] == digest
    assert prepared.train().questions == ()
    assert len(prepared.validation().questions) == 8
    assert len(prepared.test().questions) == 16


@pytest.mark.parametrize("name", ["test.safetensors", "test-questions.json"])
def test_a_changed_file_is_refused_by_name(prepared, tmp_path, name):
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=name):
        prepared.test()


def test_an_epoch_resumes_at_any_step_and_is_shared(prepared):
    train = make_train_batches(prepared, batch_size=6, seed=3)
    whole = list(train.epoch(1))
    assert len(whole) == len(train)
    for start in range(len(train) + 1):
        rest = list(train.epoch(1, start))
        assert all(
            torch.equal(a, b)
            for x, y in zip(whole[start:], rest, strict=True)
            for a, b in zip(x, y, strict=True)
        )
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(whole, train.epoch(2), strict=True))
    halves = [list(train.epoch(1, 0, Part(rank, 2))) for rank in (0, 1)]
    for (_, target), left, right in zip(whole, *halves, strict=True):
        assert torch.equal(target, torch.cat([left[1], right[1]]))
    with pytest.raises(ValueError, match="start_step"):
        next(train.epoch(0, len(train) + 1))


def test_evaluation_batches_are_in_order_and_bounded(prepared, monkeypatch):
    monkeypatch.setattr("pipeline.data.squad.batches.MAX_TOKENS", 5 * 32)
    batches = make_eval_batches(prepared, prepared.test(), batch_size=100)
    rows = [row for _, asked in batches for row in asked.rows]
    assert rows == list(range(len(prepared.test())))
    assert max(len(asked) for _, asked in batches) == 5


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "squad"}, "squad: a block for"),
        ({"name": "digits", "squad": {"tokenizer": "x"}}, "for these only"),
        ({"name": "squad", "squad": {"tokenizer": "x"}, "size": 8}, "for images"),
        ({"name": "squad", "squad": {"tokenizer": "x", "strides": 8}}, "strides"),
    ],
)
def test_settings_that_make_no_sense_are_refused(block, message):
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate(block)


def test_an_unknown_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=f"data.squad.tokenizer: .*{tmp_path.name}"):
        load_tokenizer(str(tmp_path))


def test_the_world_of_these_tests_is_right():
    made = paragraph(1, 2)
    for qa in made["qas"]:
        (answer,) = qa["answers"]
        start = answer["answer_start"]
        assert made["context"][start : start + len(answer["text"])] == answer["text"]
