"""What cannot run is refused before any work: one bounded line with the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.study.params.load import ParamsError, load_params
from tests.pipeline.study.params.test_params import GOOD

SCREEN = 80 * 24
HUGE = "1" + "0" * 5000


def refused(path: Path) -> str:
    """The one line that refuses the file."""
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < SCREEN
    assert told.startswith(str(path))
    return told.removeprefix(str(path))


def refused_text(tmp_path: Path, text: str) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return refused(path)


CANNOT_RUN = [
    ("lr: 1e-1", "lr: .inf", ": train.optimizer.lr: inf is not a finite number"),
    ("weight_decay: 5e-4", "weight_decay: .inf", ": train.optimizer.weight_decay: inf is no"),
    ("epochs: 6", "epochs: 6\n  clip_norm: .inf", ": train.clip_norm: inf is not a finite"),
    ("epochs: 6", "epochs: 6\n  mixup: .inf", ": train.mixup: inf is not a finite"),
    ("name: multistep", "name: multistep, gamma: .inf", ": train.schedule.gamma: inf is no"),
    ("dense: {}", "dense: {}\n  hspg: {penalty: .inf}", ": methods.hspg.penalty: inf is no"),
    (
        "epochs: 6",
        "epochs: 6\n  flush_denormal: true",
        ": trainings.a.train.flush_denormal: true needs",
    ),
    ("val_size: 200", "normalise: {mean: [.nan], std: [1]}", ": data.normalise.mean.0: nan is no"),
    (
        "method: dense",
        f"method: dense, seed: {2**70}",
        ": trainings.a.seed: 1180591620717411303424",
    ),
    ("method: dense", f"method: dense, seed: {2**40}", ": trainings.a.seed: must be less than"),
    ("method: dense", f"method: dense, seed: {HUGE}", ": not valid YAML: Exceeds the limit"),
    ("resnet8}", "resnet8, width: 0}", ": trainings.a.model.width: 0 is not from 1 to 1048576"),
    ("resnet8}", "resnet8, width: -1}", ": trainings.a.model.width: -1 is not from 1"),
    ("resnet8}", "resnet8, width: 1000000000000}", ": trainings.a.model.width: 1000000000000 is"),
    ("{rule: zeros}", "{rule: macs}, reference: {width: 0}", ": prunings.b-r1"),
    ("rewind_epoch: 1", "rewind_epoch: 7", ": train.rewind_epoch: 7 is beyond the end, epoch 6"),
    (
        "batch_size: 32",
        "rewind_epoch: 99",
        "needs train.rewind_epoch (99) and retrain_epochs (None) within train.epochs (6) (training",
    ),
    (
        "method: dense}",
        "method: dense, train: {rewind_epoch: 99}}",
        ": trainings.a.train.rewind_epoch: 99 is beyond the end, epoch 6 (training 'a')",
    ),
    ("rounds: 2", "rounds: 1000000000", ": methods.imp.rounds: "),
    ("  a-p50:", f"  {'x' * 300}:", ": prunings.xxx"),
    ("study: t", 'study: "t\\nu"', ": study: 't\\nu' is no name of an experiment"),
    ("study: t", f"study: {'x' * 300}", ": study: 'xxx"),
    ("study: t", 'study: ""', ": study: '' is no name"),
    ("  a-p50:", "  a;b:", ": prunings.a;b: a name is at most"),
    ("  a-p50:", "  $(touch x):", ": prunings.$(touch x): a name is"),
    ("  a-p50:", "  a b:", ": prunings.a b: a name is"),
    ("  a-p50:", '  "a\'b":', ": prunings.a'b: a name is"),
    ("  a-p50:", "  1:", ": prunings.1: a key is text; put 1 in quotes"),
    ("  a-p50:", "  1.5:", ": prunings.1.5: a key is text; put 1.5 in quotes"),
    ("trainings: [a]", "trainings: [a; touch x]", ": sweep.trainings: 'a; touch x' is no name"),
    ("trainings: [a]", "trainings: [1]", ": sweep.trainings.0: "),
    ("data: {", "data: {size: [1, 2], ", ": data.size: expected a whole number"),
    ("data: {", "data: {preset: [1], ", ": data.preset: unknown [1]; (known: "),
    ("data: {name: digits", "data: {name: {x: 1}", ": data.name: unknown {'x': 1}; (known: "),
    ("name: digits", "name: digit", ": data.name: unknown 'digit'; did you mean 'digits'?"),
    ("name: multistep", "name: multisteps", "'multisteps' is unknown; did you mean 'multistep'?"),
    ("method: imp", "method: inp", ".method: 'inp' has no block under `methods`; did you mean"),
    ("{rule: zeros}", "{rule: zero}", "target.rule: 'zero' is unknown; did you mean 'zeros'?"),
    ("study: t", "study: t\ncompute: {threads: 100000}", ": compute.threads: "),
    ("study: t", f"study: t\nx: {'[' * 3000}", "not valid YAML"),
    ("study: t", "study: 5", ": study: expected text; put 5 in quotes"),
    ("  a-p50:", "  2026-01-01:", ": prunings.2026-01-01: a key is text; put 2026-01-01 in"),
    ("  a-p50:", "  null:", ": prunings.null: a key is text; put null in quotes"),
    (
        "{family: small, name: resnet8}",
        "resnet8",
        ".model: expected a block, `model: {family: ..., ",
    ),
    ("dense: {}", "dense:", ": methods.dense: expected a block of keys (got nothing)"),
    ("trainings: [a]", "trainings: a", ": sweep.trainings: expected a list, `trainings: [...]`"),
    ("[0.5, 0.9]", "[]", ": sweep.sparsities: empty; add values such as [0.5, 0.9]"),
    (
        "study: t",
        "study: t\ndeliver: [a-p5]",
        ": deliver: 'a-p5' is no pruning; did you mean 'a-p50",
    ),
    (
        "study: t",
        "study: t\ncompute: {processes: all}",
        "s: expected a whole number or 'auto' (got '",
    ),
    (
        "study: t",
        "study: t\ncompute: {cluster: {time: 4 hours}}",
        ".time: write it as 04:00:00 (got",
    ),
    ("study: t", "study: t\ncompute: {cluster: {memory: 8}}", ": expected text; write it as 8GB"),
    (
        "e: {epochs: 2",
        "e: {epochs: x",
        "epochs: expected a whole number or a block, `epochs: {match:",
    ),
    (
        "e: {epochs: 2",
        "e: {epochs: -1",
        ": finetune.epochs: must be greater than or equal to 0 (got",
    ),
    (
        "e: {epochs: 2",
        "e: {epochs: {matc: macs}",
        ".epochs.matc: unknown key; did you mean 'match'?",
    ),
    (
        "e: {epochs: 2",
        "e: {epochs: {match: mac}",
        ".epochs.match: 'mac' is unknown; did you mean 'ma",
    ),
    ("data: {", "data: {augment: [flipp], ", ": data.augment.0: 'flipp' is unknown; did you mean"),
    (
        "data: {",
        "data: {augment: [{name: flip, x: 1}], ",
        ": data.augment.0.x: unknown key; (known: n",
    ),
    ("data: {", "data: {augment: atuo, ", ": data.augment: unknown 'atuo', which is no list"),
    (
        "data: {",
        "data: {normalise: {mean: 1, std: [1]}, ",
        ": data.normalise.mean: expected a list",
    ),
    ("{rule: zeros}", "{rule: macs}", ".target.value: missing; add the fraction that rule: macs"),
    ("{rule: zeros}", "zeros", ".target: expected a block, `target: {rule: ...}` (got 'zeros')"),
    ("{rule: zeros}", "{}", ".target.rule: missing; add `rule: ...`"),
    ("study: t", "study: 2026-13-45", "not valid YAML: month must be in 1..12"),
    ("study: t", f"study: t\n{'k' * 500}: 1", ": kkk"),
    ("study: t", "study: t\nx: &x [*x]", ": x.0.0: nested deeper than 24"),
]


@pytest.mark.parametrize(("old", "new", "message"), CANNOT_RUN)
def test_one_line_with_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert message in refused_text(tmp_path, GOOD.replace(old, new, 1))


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    bomb = ["b0: &b0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert "more than 300000 values" in refused_text(tmp_path, GOOD + "\n".join(bomb))


def test_what_is_no_text_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.mkdir()
    assert refused(path) == ": cannot be read: Is a directory"
    path.rmdir()
    path.write_bytes(b"study: t\n# caf\xe9\n")
    assert refused(path) == ":2: not UTF-8 text; save the file as UTF-8"
    path.write_bytes(b"")
    assert refused(path) == ": expected blocks such as `train:`, got nothing"


def test_all_that_is_wrong_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace("epochs: 6", "epoch: 6\n  batch_size: x", 1))
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}: train.epoch: unknown key; did you mean 'epochs'?")
    assert str(caught.value).endswith("(and 2 more; `espalier check` lists all)")
    assert [line.split(": ")[1] for line in caught.value.lines] == [
        "train.epoch",
        "train.epochs",
        "train.batch_size",
    ]
