"""Exact match and F1 of SQuAD v1.1, as its official evaluation defines them.

Rajpurkar et al., EMNLP 2016, section 6.1: answers are compared without case, ASCII punctuation,
English articles and extra white space. With several gold answers, the best match counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """The words that are compared. Punctuation is removed before articles: "the-end" is one word,
    "theend"."""
    return _ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def exact_match(answer: str, gold: str) -> bool:
    """The same words in the same order."""
    return words(answer) == words(gold)


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words. It is 0 if no word is shared, even if
    both answers are empty (where v2's evaluation gives 1)."""
    found, wanted = words(answer), words(gold)
    shared = (Counter(found) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def answer_scores(pairs: Iterable[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """Percentages over all (answer, golds): "exact_match" and "f1".

    Raises:
        ValueError: there are no questions, or a question has no gold answer.
    """
    matches, overlap, count = 0, 0.0, 0
    for answer, golds in pairs:
        matches += max(exact_match(answer, gold) for gold in golds)
        overlap += max(f1(answer, gold) for gold in golds)
        count += 1
    if not count:
        raise ValueError("scores of an empty split: there is nothing to evaluate")
    return {"exact_match": 100.0 * matches / count, "f1": 100.0 * overlap / count}
