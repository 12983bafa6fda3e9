"""Windows of a context: their stride, the targets in them, the answers they find."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.files import DataError
from pipeline.data.prepare import prepare
from pipeline.data.prepared import load_prepared
from pipeline.data.squad.features import load_tokenizer, make_features
from pipeline.data.squad.questions import Question
from tests.squad_world import config


def features(questions, tokenizer, **lengths):
    block = config(Path(), tokenizer, lengths).squad
    return make_features(questions, load_tokenizer(tokenizer), block, True)


def question(context: str, answer: str, text: str = "Where?", nth: int = 0) -> Question:
    start = -1
    for _ in range(nth + 1):
        start = context.index(answer, start + 1)
    return Question("q", 0, context, text, ((answer, start),))


def test_windows_cover_the_context_in_steps_of_the_stride(tokenizer):
    context = " ".join(["cat", "dog", "bird", "fish", "red"] * 6)  # 30 tokens
    asked = question(context, "red", nth=3)
    made = features([asked], tokenizer, max_length=17, stride=4)  # 17 - [CLS] where ? 2x[SEP] = 12
    starts = [int(row[row >= 0][0]) for row in made["offsets"][:, :, 0]]
    words = [context[:s].count(" ") for s in starts]
    assert words == [0, 4, 8, 12, 16, 20][: len(words)]
    assert int(made["offsets"].max()) == len(context)
    seen = made["offsets"][:, :, 0] >= 0
    assert (made["best"] <= seen).all()
    best = [tuple(o.tolist()) for o in made["offsets"][made["best"]]]
    assert len(best) == len(set(best)) == 30  # every token is best seen in exactly one window


def test_a_token_belongs_to_the_first_window_that_shows_most_around_it(tokenizer):
    context = " ".join(["cat", "dog", "bird", "fish", "red"] * 6)
    made = features([question(context, "red")], tokenizer, max_length=17, stride=5)
    rows = [[o[0] for o in row if o[0] >= 0] for row in made["offsets"].tolist()]
    ties = 0
    for start in sorted({s for row in rows for s in row}):
        around = [
            min(row.index(start), len(row) - 1 - row.index(start)) + 0.01 * len(row)
            if start in row
            else -1.0
            for row in rows
        ]
        ties += around.count(max(around)) > 1
        seen = [
            bool((made["best"][k] & (made["offsets"][k, :, 0] == start)).any())
            for k in range(len(rows))
        ]
        assert seen == [k == around.index(max(around)) for k in range(len(rows))]
    assert ties


def test_targets_are_the_answer_or_the_cls_token(tokenizer):
    context = " ".join(["cat", "dog", "bird", "fish", "red"] * 6)
    asked = question(context, "red cat", nth=2)
    made = features([asked], tokenizer, max_length=17, stride=4)
    (text, start), found = asked.answers[0], 0
    for target, offsets in zip(made["target"].tolist(), made["offsets"].tolist(), strict=True):
        inside = [o for o in offsets if o[0] >= 0]
        whole = inside[0][0] <= start and start + len(text) <= inside[-1][1]
        if whole:
            assert context[offsets[target[0]][0] : offsets[target[1]][1]] == text
            found += 1
        else:
            assert target == [0, 0]
    assert 0 < found < len(made["target"])


@pytest.mark.parametrize("answer", ["mat", "the mat", "cats", "Über", "mat."])
def test_answers_are_found_in_unicode_and_word_pieces(tokenizer, answer):
    context = "The cats sat on the mat. Über  the  river\u00a0it ran — the end?"
    made = features([question(context, answer)], tokenizer)
    first, last = made["target"][0].tolist()
    offsets = made["offsets"][0]
    assert answer in context[offsets[first, 0] : offsets[last, 1]]


def test_training_windows_without_the_answer_may_be_left_out(root, tokenizer, tmp_path):
    counts = []
    for drop in (False, True):
        block = {"max_length": 20, "stride": 4, "drop_empty": drop}
        prepare(config(root, tokenizer, block), tmp_path / str(drop))
        counts.append(load_prepared(tmp_path / str(drop)).card["counts"])
    assert counts[1]["train"]["windows"] == counts[0]["train"]["with_answer"] > 0
    assert counts[0]["train"]["windows"] > counts[0]["train"]["with_answer"]
    assert counts[1]["test"] == counts[0]["test"]


def test_a_long_question_is_cut_and_a_full_window_refused(tokenizer):
    asked = question("the cat sat on the mat", "mat", "where " * 20)
    made = features([asked], tokenizer, query_length=5)
    assert int(made["second"][0]) == 7  # [CLS], five tokens, [SEP]
    with pytest.raises(DataError, match="less than stride 28"):
        features([asked], tokenizer, query_length=5, stride=28)


def test_batches_are_as_long_as_their_longest_window(tokenizer):
    from pipeline.data.squad.batches import QuestionEval
    from pipeline.data.squad.prepared import QuestionSplit

    short, long = question("the cat", "cat"), question("the cat " * 20, "cat")
    made = features([short, long], tokenizer, max_length=64, stride=40)
    batches = list(QuestionEval(QuestionSplit(made), batch_size=1))
    assert [b[0].shape[2] for b in batches] == [16, 48]
    ids, mask, types = batches[0][0][0]
    assert mask.tolist() == [1] * 7 + [0] * 9  # [CLS] where ? [SEP] the cat [SEP]
    assert types.tolist() == [0] * 4 + [1] * 3 + [0] * 9
    assert (ids[7:] == 0).all()
