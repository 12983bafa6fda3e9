"""Exact match and F1 against values worked out by hand, and against torchmetrics."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.tasks.squad_scores import answer_scores, exact_match, f1, words

# Answer, golds, exact match, F1: from the definition in the paper, by hand.
CASES = [
    ("Denver Broncos", ["Denver Broncos"], 1, 1.0),
    ("the Denver Broncos", ["Denver Broncos!"], 1, 1.0),
    ("Broncos", ["Denver Broncos"], 0, 2 / 3),
    ("Denver  \t Broncos", ["denver broncos"], 1, 1.0),
    ("a an the", ["The"], 1, 0.0),
    ("", ["Denver"], 0, 0.0),
    ("", ["..."], 1, 0.0),
    ("theory", ["ory"], 0, 0.0),
    ("the-end", ["end"], 0, 0.0),  # punctuation goes first: "theend" is no article
    ("the - end", ["end"], 1, 1.0),
    ("U.S.A", ["USA"], 1, 1.0),
    ("$3,000", ["3000"], 1, 1.0),
    ("Zürich", ["Zurich"], 0, 0.0),
    ("ZÜRICH", ["zürich"], 1, 1.0),
    ("1990–1995", ["1990-1995"], 0, 0.0),  # an en dash is no ASCII punctuation
    ("«word»", ["word"], 0, 0.0),
    ("new new york", ["new york new"], 0, 1.0),
    ("york york york", ["new york"], 0, 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
    ("golden state", ["gold", "the golden state warriors", "golden gate"], 0, 0.8),
    ("1", ["one", "1"], 1, 1.0),
    ("a b", ["b"], 1, 1.0),
    ("A", ["a"], 1, 0.0),
    ("no\u00a0break", ["no break"], 1, 1.0),
]


@pytest.mark.parametrize(("answer", "golds", "match", "overlap"), CASES)
def test_by_hand(answer, golds, match, overlap):
    found = answer_scores([(answer, golds)])
    assert found["exact_match"] == 100.0 * match
    assert found["f1"] == pytest.approx(100.0 * overlap, abs=1e-9)


def test_the_mean_is_over_questions_not_golds():
    found = answer_scores([("cat", ["cat"] * 5), ("dog", ["bird"])])
    assert found == {"exact_match": 50.0, "f1": 50.0}


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="empty split"):
        answer_scores([])


TEXT = st.text(alphabet="abthen .,-'Üü\u00a0", max_size=12)


@given(TEXT, TEXT)
def test_laws(one, other):
    assert f1(one, other) == pytest.approx(f1(other, one))
    assert 0.0 <= f1(one, other) <= 1.0
    assert exact_match(one, other) == (words(one) == words(other))
    if exact_match(one, other) and words(one):
        assert f1(one, other) == 1.0


@settings(deadline=None)  # the first call imports torchmetrics
@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_torchmetrics_agrees(answer, golds):
    """But where an answer or a gold has no words: v1.1's F1 is 0 there, torchmetrics' is v2's."""
    functional = pytest.importorskip("torchmetrics.functional.text")
    preds = [{"prediction_text": answer, "id": "x"}]
    target = [{"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": "x"}]
    theirs = functional.squad(preds, target)
    ours = answer_scores([(answer, golds)])
    assert ours["exact_match"] == float(theirs["exact_match"])
    if words(answer):
        assert ours["f1"] == pytest.approx(float(theirs["f1"]), abs=1e-4)
