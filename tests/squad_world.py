"""A SQuAD of a few sentences in the official form, a tokenizer that knows its words, tiny BERTs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline.data.config import DataConfig

_WORDS = (
    "the a an cat dog bird fish sat ran swam flew on in under over mat house river tree red blue "
    "green old young who where what when did is was it and then day night at by of ##s ##ed"
)
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS.split(), ".", "?", ",", "-", "'"]
ANIMALS = ("cat", "dog", "bird", "fish")
PLACES = ("on the mat", "in the house", "under the river", "over the old tree")


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(VOCAB)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def write_tokenizer(folder: Path) -> str:
    """A folder that `transformers` loads a fast tokenizer from; returns its name."""
    _tokenizer().save_pretrained(folder)
    return str(folder)


def paragraph(article: int, number: int) -> dict[str, Any]:
    """One sentence per animal, one question per sentence."""
    shift = article + number
    told = [(a, PLACES[(i + shift) % 4]) for i, a in enumerate(ANIMALS)]
    context = " ".join(f"The {a} sat {place}." for a, place in told)
    qas = []
    for animal, place in told:
        start = context.index(place, context.index(animal))
        answers = [{"text": place, "answer_start": start}]
        asked = {"id": f"{article}-{number}-{animal}", "question": f"Where did the {animal} sit?"}
        qas.append({**asked, "answers": answers})
    return {"context": context, "qas": qas}


def squad_json(articles: int, paragraphs: int = 2) -> dict[str, Any]:
    """4 questions per paragraph."""
    data = [
        {"title": f"t{a}", "paragraphs": [paragraph(a, p) for p in range(paragraphs)]}
        for a in range(articles)
    ]
    return {"version": "1.1", "data": data}


def write_squad(root: Path, articles: int = 6, dev: int = 2) -> Path:
    """The two files under the names of reconstructed ones."""
    root.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", articles), ("dev", dev)):
        path = root / f"{name}-v1.1.reconstructed.json"
        path.write_text(json.dumps(squad_json(count)))
    return root


def config(
    root: Path, tokenizer: str, squad: dict[str, Any] | None = None, **more: Any
) -> DataConfig:
    """The `data:` block of that SQuAD."""
    lengths = {"max_length": 32, "stride": 8, "query_length": 8}
    block = {"tokenizer": tokenizer, **lengths, **(squad or {})}
    given = {"name": "squad_reconstructed", "root": str(root), "squad": block, **more}
    return DataConfig.model_validate(given)


TINY = {
    "layers": 2,
    "hidden": 16,
    "heads": 4,
    "intermediate": 24,
    "vocab": len(VOCAB),
    "positions": 40,
}
"""Arguments of `encoder_qa`."""


def windows(batch: int = 3, length: int = 32, seed: int = 0) -> torch.Tensor:
    """Random inputs [B, 3, T], the last third of the last window is padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(VOCAB), (batch, length), generator=generator)
    mask, types = torch.ones(2, batch, length, dtype=torch.int64)
    types[:, : length // 4] = 0
    mask[-1, -length // 3 :] = 0
    return torch.stack([ids * mask, mask, types * mask], dim=1)
