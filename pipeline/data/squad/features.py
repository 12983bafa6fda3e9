"""Convert questions to windows of tokens, with offsets back to the characters.

A window is [CLS] question [SEP] part of the context [SEP]. A context that is too long for one
window has several, which begin `stride` tokens apart. Lengths are in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.config import SquadConfig
from pipeline.data.files import DataError
from pipeline.data.squad.questions import Question
from pipeline.files import file_sha256

_CHUNK = 1024
Ints = npt.NDArray[np.int64]


def load_tokenizer(source: str) -> Any:
    """A fast tokenizer of `transformers`, from a folder or by its name on the hub.

    Raises:
        DataError: there is none, or it has no character offsets.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(f"data.squad.tokenizer: {source!r} cannot be loaded: {error}") from error
    if not tokenizer.is_fast or tokenizer.cls_token_id is None:
        raise DataError(f"data.squad.tokenizer: {source!r} is no fast tokenizer of an encoder")
    return tokenizer


def tokenizer_card(source: str, tokenizer: Any) -> dict[str, Any]:
    """The entry of a tokenizer in the data card: source, number of tokens, files."""
    folder = Path(source)
    names = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
    files = [folder / name for name in names] if folder.is_dir() else []
    return {
        "source": source,
        "vocab": len(tokenizer),
        "files": {p.name: file_sha256(p) for p in files if p.is_file()},
    }


@dataclass(frozen=True)
class _Window:
    """One window: positions of the context's tokens in it, and its position in the context."""

    question: int
    ids: list[int]
    second: int
    begin: int
    offsets: Ints
    first_token: int

    @property
    def end(self) -> int:
        return self.begin + len(self.offsets)


def make_features(
    questions: Sequence[Question], tokenizer: Any, config: SquadConfig, for_answers: bool
) -> dict[str, Tensor]:
    """Tensors with one row per window, in the order of the questions; all int32 except `best`.

    ids [F, L], padded with 0; length [F]; second [F], the first token of type 1; question [F], the
    row of its question; target [F, 2], first and last token of the first answer, both the [CLS]
    token if the window does not contain the whole answer. For evaluation also: offsets [F, L, 2],
    first and end character of each token of the context, -1 for other tokens; best [F, L], whether
    no other window has more context around this token.
    """
    windows = list(_windows(questions, tokenizer, config))
    count, length = len(windows), config.max_length
    ids = np.zeros((count, length), np.int32)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = window.ids
    cls = tokenizer.cls_token_id
    target = [_target(questions[w.question], w, w.ids.index(cls)) for w in windows]
    found: dict[str, Any] = {
        "ids": ids,
        "length": [len(w.ids) for w in windows],
        "second": [w.second for w in windows],
        "question": [w.question for w in windows],
        "target": np.array(target).reshape(count, 2),
    }
    tensors = {k: torch.from_numpy(np.asarray(v, np.int32)) for k, v in found.items()}
    if for_answers:
        offsets = np.full((count, length, 2), -1, np.int32)
        for row, window in enumerate(windows):
            offsets[row, window.begin : window.end] = window.offsets
        tensors["offsets"] = torch.from_numpy(offsets)
        tensors["best"] = torch.from_numpy(_best(windows, length))
    return tensors


def _windows(
    questions: Sequence[Question], tokenizer: Any, config: SquadConfig
) -> Iterator[_Window]:
    """The windows, in the order of the questions."""
    for first in range(0, len(questions), _CHUNK):
        some = questions[first : first + _CHUNK]
        texts, lengths = _shortened([q.text for q in some], tokenizer, config.query_length)
        found: dict[int, list[_Window]] = {}
        for length in sorted(set(lengths)):
            rows = [i for i, n in enumerate(lengths) if n == length]
            pairs = ([texts[i] for i in rows], [some[i].context for i in rows])
            for at, encodings in _encoded(pairs, length, tokenizer, config):
                row = first + rows[at]
                step = config.stride
                found[row] = [_window(row, e, k * step) for k, e in enumerate(encodings)]
        for row in sorted(found):
            yield from found[row]


def _shortened(texts: Sequence[str], tokenizer: Any, limit: int) -> tuple[list[str], list[int]]:
    """The questions cut after their first `limit` tokens, and the number of tokens of each."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    cut = []
    for text, offsets in zip(texts, encoded["offset_mapping"], strict=True):
        cut.append(text[: offsets[limit - 1][1]] if len(offsets) > limit else text)
    again = tokenizer(cut, add_special_tokens=False)
    return cut, [len(ids) for ids in again["input_ids"]]


def _encoded(
    pairs: tuple[list[str], list[str]], length: int, tokenizer: Any, config: SquadConfig
) -> Iterator[tuple[int, list[Any]]]:
    """Position in `pairs` and encodings of its windows. All questions have `length` tokens.

    Raises:
        DataError: the question leaves less than `stride` tokens for the context.
    """
    room = config.max_length - length - tokenizer.num_special_tokens_to_add(pair=True)
    if room < config.stride:
        raise DataError(
            f"data.squad: a question of {length} tokens leaves {room} of max_length "
            f"{config.max_length} for the context, less than stride {config.stride}"
        )
    encoded = tokenizer(
        *pairs,
        truncation="only_second",
        max_length=config.max_length,
        stride=room - config.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    of: dict[int, list[Any]] = {}
    for encoding, at in zip(encoded.encodings, encoded["overflow_to_sample_mapping"], strict=True):
        of.setdefault(at, []).append(encoding)
    yield from of.items()


def _window(question: int, encoding: Any, first_token: int) -> _Window:
    sequences = encoding.sequence_ids
    begin = sequences.index(1) if 1 in sequences else len(sequences)
    count = sequences.count(1)
    offsets = np.array(encoding.offsets[begin : begin + count], np.int64).reshape(-1, 2)
    types = encoding.type_ids
    second = types.index(1) if 1 in types else len(types)
    return _Window(question, encoding.ids, second, begin, offsets, first_token)


def _target(question: Question, window: _Window, cls: int) -> tuple[int, int]:
    text, start = question.answers[0]
    end = start + len(text)
    offsets = window.offsets
    if not len(offsets) or offsets[0, 0] > start or offsets[-1, 1] < end:
        return cls, cls
    first = int(np.searchsorted(offsets[:, 0], start, side="right")) - 1
    last = int(np.searchsorted(offsets[:, 1], end, side="left"))
    return window.begin + first, window.begin + last


def _best(windows: Sequence[_Window], length: int) -> npt.NDArray[np.bool_]:
    """Per window and position, whether this window has the most context around the token. Measured
    as in BERT's program: the shorter side plus a hundredth of the window's length."""
    best = np.zeros((len(windows), length), bool)
    top: dict[tuple[int, int], tuple[float, int]] = {}
    for row, window in enumerate(windows):
        count = len(window.offsets)
        for place in range(count):
            score = min(place, count - 1 - place) + 0.01 * count
            key = (window.question, window.first_token + place)
            if key not in top or score > top[key][0]:
                top[key] = (score, row)
    for (_, token), (_, row) in top.items():
        best[row, windows[row].begin + token - windows[row].first_token] = True
    return best


def answered(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The windows that contain their answer."""
    holds = features["target"][:, 1] > 0
    return {name: values[holds] for name, values in features.items()}


def summary(features: Mapping[str, Tensor]) -> dict[str, int]:
    """Counts for the data card."""
    holds = int((features["target"][:, 1] > 0).sum())
    longest = int(features["length"].max())
    return {"windows": len(features["ids"]), "with_answer": holds, "longest": longest}
