"""The prepared form of SQuAD: one file of tensors per split, and the questions to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.data.config import DataConfig
from pipeline.data.files import replaced_folder
from pipeline.data.squad.features import (
    answered,
    load_tokenizer,
    make_features,
    summary,
    tokenizer_card,
)
from pipeline.data.squad.questions import Question, draw_questions, load_squad
from pipeline.files import file_sha256, read_json, write_json

CARD = "card.json"
QUESTIONS = "_questions"  # suffix of a split's name: the file of its questions


@dataclass(frozen=True)
class QuestionKey:
    """The context that an answer is cut from, and the gold answers to compare it with."""

    id: str
    context: str
    golds: tuple[str, ...]


@dataclass(frozen=True)
class QuestionSplit:
    """A split of questions as windows; `features` as in `make_features`. `questions` is empty for
    the training split, which is not evaluated."""

    features: Mapping[str, Tensor]
    questions: tuple[QuestionKey, ...] = ()

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.features["ids"])


def prepare_squad(config: DataConfig, out: Path) -> None:
    """Write the splits of SQuAD and their card into `out`. The same config and files give the same
    bytes. `out` changes only after everything is written.

    Raises:
        DataError: files, tokenizer or sizes do not fit. Nothing was written.
    """
    from safetensors.torch import save_file

    assert config.squad is not None  # DataConfig refuses squad without its block
    raw = load_squad(config)
    drawn = draw_questions(config, raw)
    tokenizer = load_tokenizer(config.squad.tokenizer)
    card = _card(config, raw.sources, tokenizer, dict(drawn.dropped))
    with replaced_folder(out) as folder:
        files = {}
        for name, questions in drawn.splits.items():
            features = make_features(questions, tokenizer, config.squad, name != "train")
            if name == "train" and config.squad.drop_empty:
                features = answered(features)
            card["counts"][name] = {"questions": len(questions), **summary(features)}
            files[name] = path = folder / f"{name}.safetensors"
            save_file(features, path)
            path.chmod(0o644)  # safetensors writes for the owner only; a shared cache has readers
            if name != "train":
                files[name + QUESTIONS] = path = folder / f"{name}-questions.json"
                write_json(path, _index(questions))
        card["files"] = {
            name: {"file": p.name, "bytes": p.stat().st_size, "sha256": file_sha256(p)}
            for name, p in files.items()
        }
        write_json(folder / CARD, card)


def _card(
    config: DataConfig, sources: Mapping[str, str], tokenizer: Any, dropped: dict[str, int]
) -> dict[str, Any]:
    assert config.squad is not None
    return {
        "name": config.name,
        "reconstructed": config.name == "squad_reconstructed",
        "input_shape": [3, config.squad.max_length],
        "num_classes": 2,
        "squad": config.squad.model_dump(mode="json"),
        "tokenizer": tokenizer_card(config.squad.tokenizer, tokenizer),
        "split_seed": config.split_seed,
        "dropped": dropped,
        "counts": {},
        "sources": dict(sources),
    }


def _index(questions: Sequence[Question]) -> dict[str, Any]:
    """Each context once; a question refers to its context by number."""
    contexts = {context: i for i, context in enumerate(dict.fromkeys(q.context for q in questions))}
    rows = [
        {"id": q.id, "context": contexts[q.context], "golds": [text for text, _ in q.answers]}
        for q in questions
    ]
    return {"contexts": list(contexts), "questions": rows}


def read_split(tensors: Path, questions: Path | None) -> QuestionSplit:
    """Read a split that `prepare_squad` wrote. The caller checks its files."""
    from safetensors.torch import load_file

    if questions is None:
        return QuestionSplit(load_file(tensors))
    index = read_json(questions)
    keys = tuple(
        QuestionKey(q["id"], index["contexts"][q["context"]], tuple(q["golds"]))
        for q in index["questions"]
    )
    return QuestionSplit(load_file(tensors), keys)
