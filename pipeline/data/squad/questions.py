"""SQuAD v1.1: the official JSON files, read, checked, and drawn into splits.

Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, EMNLP 2016.
`squad` accepts only the official files. `squad_reconstructed` reads files of the same format whose
names contain "reconstructed"; everything made from them has this name.
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.config import DataConfig
from pipeline.data.files import DataError, md5
from pipeline.data.splits import stratified
from pipeline.files import file_sha256, replacing

URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
OFFICIAL: Mapping[str, tuple[str, str]] = {
    "train": ("train-v1.1.json", "981b29407e0affa3b1b156f72073b945"),
    "test": ("dev-v1.1.json", "3e85deb501d4e538b6bc56f786231552"),
}
"""Split -> file and md5. The public dev set is our test split, so no setting is chosen on it."""
RECONSTRUCTED = {"train": "train-v1.1.reconstructed.json", "test": "dev-v1.1.reconstructed.json"}


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        article: index of its article in the file.
        answers: (text, first character in `context`), at least one; training uses the first.
        guessed: the position of the answer is not certain (reconstructed files only).
    """

    id: str
    article: int
    context: str
    text: str
    answers: tuple[tuple[str, int], ...]
    guessed: bool = False

    @property
    def placed(self) -> bool:
        """Whether the first answer is at its stated position."""
        text, start = self.answers[0]
        return bool(text) and start >= 0 and self.context[start : start + len(text)] == text


@dataclass(frozen=True)
class RawSquad:
    """The two files without changes. `sources`: file name -> sha256."""

    train: tuple[Question, ...]
    test: tuple[Question, ...]
    sources: Mapping[str, str]


def load_squad(config: DataConfig) -> RawSquad:
    """Both files. For `squad`, downloads missing ones if the config allows it.

    Raises:
        DataError: a file is missing, not the official one, or not in SQuAD's format.
    """
    root = Path(config.root or "")
    paths = {split: _file(config, root, split) for split in OFFICIAL}
    return RawSquad(
        tuple(read_questions(paths["train"])),
        tuple(read_questions(paths["test"])),
        {p.name: file_sha256(p) for p in paths.values()},
    )


def _file(config: DataConfig, root: Path, split: str) -> Path:
    if config.name == "squad_reconstructed":
        return _present(root / RECONSTRUCTED[split], "it is never downloaded: put it there")
    name, digest = OFFICIAL[split]
    path = root / name
    if not path.is_file() and config.download:
        _download(URL + name, path)
    _present(path, "set data.download: true or put the official file there")
    if (found := md5(path)) != digest:
        raise DataError(
            f"{path}: its md5 is {found}, the official file's {digest}: delete it, or use "
            f"data.name: squad_reconstructed and call it {RECONSTRUCTED[split]}"
        )
    return path


def _present(path: Path, way_out: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing; {way_out} (data.root is {path.parent})")
    return path


def _download(url: str, path: Path) -> None:
    """Download a file atomically.

    Raises:
        DataError: the site cannot be reached.
    """
    try:
        with (
            replacing(path) as temporary,
            urllib.request.urlopen(url, timeout=60) as reply,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(reply, file)
    except OSError as error:
        raise DataError(
            f"{url}: cannot be downloaded ({error}); put {path.name} into {path.parent} yourself "
            "and set data.download: false"
        ) from error


def read_questions(path: Path) -> Iterator[Question]:
    """All questions of a file in SQuAD's format, in its order.

    Raises:
        DataError: wrong format, a question without an answer, or a duplicate id.
    """
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        questions = [q for number, a in enumerate(articles) for q in _of_article(number, a)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a SQuAD v1.1 file ({error!r})") from error
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{path}: the question id {question.id!r} is there twice")
        if not question.answers:
            raise DataError(f"{path}: question {question.id!r} has no answer: is this SQuAD v2?")
        seen.add(question.id)
    yield from questions


def _of_article(number: int, article: Mapping[str, Any]) -> Iterator[Question]:
    for paragraph in article["paragraphs"]:
        for qa in paragraph["qas"]:
            answers = tuple((str(a["text"]), int(a["answer_start"])) for a in qa["answers"])
            guessed = any(bool(a.get("start_guessed")) for a in qa["answers"])
            context, text = str(paragraph["context"]), str(qa["question"])
            yield Question(str(qa["id"]), number, context, text, answers, guessed)


@dataclass(frozen=True)
class Drawn:
    """The splits, and how many training questions were dropped, by reason."""

    splits: Mapping[str, tuple[Question, ...]]
    dropped: Mapping[str, int]


def draw_questions(config: DataConfig, raw: RawSquad) -> Drawn:
    """Training, validation (if asked for) and test split.

    The validation split consists of whole articles, drawn until they contain `val_size` questions,
    because questions of one article are not independent. `limit` and `dev_limit` then select
    questions from all articles in proportion.

    Raises:
        DataError: there are fewer questions than requested.
    """
    assert config.squad is not None  # DataConfig refuses squad without its block
    seed = config.split_seed
    splits: dict[str, tuple[Question, ...]] = {}
    train = raw.train
    if config.val_size is not None:
        chosen = _articles(train, config.val_size, seed)
        splits["validation"] = tuple(q for q in train if q.article in chosen)
        train = tuple(q for q in train if q.article not in chosen)
    placed = tuple(q for q in train if q.placed)
    dropped = {"misplaced": len(train) - len(placed)}
    kept = tuple(q for q in placed if not (config.squad.drop_guessed and q.guessed))
    dropped["guessed"] = len(placed) - len(kept)
    splits["train"] = _limited(kept, config.limit, seed, "limit")
    splits["test"] = _limited(raw.test, config.squad.dev_limit, seed, "squad.dev_limit")
    if not splits["train"]:
        raise DataError(f"data.val_size: {config.val_size} leaves no training question")
    return Drawn(splits, dropped)


def _articles(questions: Sequence[Question], wanted: int, seed: int) -> set[int]:
    """Articles in random order until they contain `wanted` questions."""
    numbers, counts = np.unique([q.article for q in questions], return_counts=True)
    order = np.random.RandomState(seed).permutation(len(numbers))  # noqa: NPY002
    total = np.cumsum(counts[order])
    if wanted > total[-1]:
        raise DataError(f"data.val_size: {wanted} of {total[-1]} questions")
    return set(numbers[order[: int(np.searchsorted(total, wanted)) + 1]].tolist())


def _limited(
    questions: tuple[Question, ...], limit: int | None, seed: int, key: str
) -> tuple[Question, ...]:
    if limit is None:
        return questions
    try:
        chosen = stratified(torch.tensor([q.article for q in questions]), limit, seed)[0]
    except DataError as error:
        raise DataError(f"data.{key}: {error}") from error
    return tuple(questions[i] for i in chosen.tolist())
