"""params.yaml is refused with a clear error, before any work, or becomes typed objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.registry import method_spec
from pipeline.study.params.load import Params, ParamsError, load_params, merge

GOOD = """
study: t
data: {name: digits, val_size: 200}
train:
  epochs: 6
  optimizer: {lr: 1e-1, weight_decay: 5e-4}
  schedule: {name: multistep, milestones: [3]}
  rewind_epoch: 1
finetune: {epochs: 2, train: {optimizer: {lr: 0.01}}}
methods:
  dense: {}
  imp: {rounds: 2, prune_per_round: 0.5}
trainings:
  a: {model: {family: small, name: resnet8}, method: dense}
  b:
    model: {family: small, name: resnet8}
    method: imp
    train: {batch_size: 32, optimizer: {lr: 0.2}}
prunings:
  a-p50: {training: a, target: {rule: fraction, value: 0.5}}
  b-r1: {training: b, at: round-1, target: {rule: zeros}, finetune: {epochs: 0}}
sweep: {trainings: [a], sparsities: [0.5, 0.9]}
"""


def load(tmp_path: Path, text: str = GOOD) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_params(path)


def test_the_repository_file_is_valid() -> None:
    params = load_params("params.yaml")
    assert params.file.trainings
    assert params.file.sweep.sparsities


def test_blocks_become_typed_objects_with_overrides(tmp_path: Path) -> None:
    params = load(tmp_path)
    assert params.recipe("a").optimizer.lr == 0.1  # 1e-1 is a number in YAML 1.2
    assert params.recipe("b").optimizer.lr == 0.2
    assert (
        params.recipe("b").optimizer.weight_decay == 5e-4
    )  # the override is laid over, not instead
    assert params.recipe("b").batch_size == 32
    assert params.retraining("a-p50").epochs == 2
    assert params.retraining("b-r1").epochs == 0
    assert params.retraining_recipe("a-p50").optimizer.lr == 0.01
    assert params.retraining_recipe("a-p50").schedule.milestones == (3,)
    assert params.method_config("b") == method_spec("imp").config(rounds=2, prune_per_round=0.5)


BAD = [
    (
        "rounds: 2",
        "roundz: 2",
        r"methods\.imp\.roundz: unknown key; did you mean 'rounds'\? \(known: .*rounds",
    ),
    ("epochs: 6", "epochs: many", r"train\.epochs: .*\(got 'many'\)"),
    ("value: 0.5", "value: 1.0", r"prunings\.a-p50\.target.*value"),
    ("value: 0.5", "value: -0.1", r"prunings\.a-p50\.target.*value"),
    ("[0.5, 0.9]", "[0.5, 1.7]", r"sweep\.sparsities\.1.*less than 1"),
    ("[0.5, 0.9]", "[0.5, 0.50]", r"sweep\.sparsities: a value is there twice"),
    (
        "0.9]}",
        "0.9], ranked: [biases]}",
        r"sweep\.ranked\.0: 'biases' is unknown; \(known: all, all_strict, channels, weights\)",
    ),
    ("0.9]}", "0.9], ranked: []}", r"sweep\.ranked: .*at least 1"),
    ("0.9]}", "0.9], ranked: [all, all]}", r"sweep\.ranked: a value is there twice"),
    (
        "0.9]}",
        "0.9], scopes: [network]}",
        r"sweep\.scopes\.0: 'network' is unknown; \(known: global, layer\)",
    ),
    ("0.9]}", "0.9], scope: global}", r"sweep\.scope: unknown key; did you mean 'scopes'"),
    ("trainings: [a]", "trainings: [a, a]", r"sweep\.trainings: a value is there twice"),
    ("trainings: [a]", "trainings: [z]", r"sweep\.trainings: 'z' is no training; \(known: a, b\)"),
    (
        "method: dense}",
        "method: densee}",
        r"trainings\.a\.method: 'densee'.*did you mean 'dense'\? \(known methods:.*dense",
    ),
    (
        "  dense: {}\n",
        "  densee: {}\n",
        r"methods\.densee: unknown method 'densee'; did you mean 'dense'\? \(known: .*dense",
    ),
    (
        "name: resnet8}, method: dense",
        "name: resnet9}, method: dense",
        r"trainings\.a\.model.*resnet8",
    ),
    ("family: small", "family: smal", r"trainings\.a\.model: unknown model family.*small"),
    ("name: resnet8}", "name: resnet8, widht: 3}", r"trainings\.a\.model\.widht: unknown key"),
    (
        "{training: a,",
        "{training: c,",
        r"prunings\.a-p50\.training: 'c' is no training; \(known: a, b\)",
    ),
    ("at: round-1", "at: round-9", r"prunings\.b-r1\.at: 'round-9'.*round-1"),
    ("name: digits", "name: digitz", r"data.*digitz"),
    ("  a-p50:", "  a-p5.0:", r"prunings\.a-p5\.0: a name is at most 100 lower-case"),
    ("  a-p50:", "  ../a:", r"prunings\.\.\./a: a name is at most"),
    ("  a-p50:", "  A-p50:", r"prunings\.A-p50: a name is at most"),
    ("  b-r1:", "  a-p50:", r"params\.yaml:\d+: 'a-p50' is there twice"),
    (
        "study: t",
        "study: t\nsparsity: 0.5",
        r"params\.yaml: sparsity: unknown key; .*\(known: .*sweep",
    ),
    ("rule: fraction", "rule: macs", r"prunings\.a-p50\.target\.rule: 'macs'.*structured"),
    ("rule: fraction", "rule: frac", r"prunings\.a-p50\.target\.rule"),
    ("study: t", "study: [t", r"params\.yaml:\d+: not valid YAML"),
    ("lr: 0.2", "lrr: 0.2", r"trainings\.b\.train\.optimizer\.lrr: unknown key; did you mean 'lr'"),
    ("{optimizer: {lr: 0.01}}", "{optimizer: {lr: -1}}", r"finetune\.train\.optimizer\.lr"),
    ("milestones: [3]", "milestones: [5, 3]", r"train\.schedule: .*milestones must increase"),
    (
        "rewind_epoch: 1",
        "keep_epochs: [2, 7]",
        r"params\.yaml: train\.keep_epochs: 7 is beyond the end, epoch 6 \(training 'a'\)",
    ),
    (
        "method: dense}",
        "method: dense, train: {keep_epochs: [9]}}",
        r"trainings\.a\.train\.keep_epochs: 9 is beyond",
    ),
    ("rewind_epoch: 1", "keep_epochs: [0]", r"train\.keep_epochs\.0: .*greater than"),
    ("rewind_epoch: 1", "keep_epochs: [3, 2]", r"train: .*keep_epochs must increase"),
    (
        "at: round-1,",
        "at: round-1, shuffle: layerwise,",
        r"prunings\.b-r1\.shuffle: the weights .* are zero.*start_from: init, rewind or random",
    ),
    (
        "{training: a,",
        "{training: a, granularity: structured, saliency: magnitude, shuffle: global,",
        r"prunings\.a-p50\.shuffle: 'global' is for unstructured masks only",
    ),
    (
        "{training: a,",
        "{training: a, granularity: structured,",
        r"prunings\.a-p50\.granularity: structured, but the method of a ranks unstructured",
    ),
    (
        "{training: a,",
        "{training: a, shuffle: all,",
        r"prunings\.a-p50\.shuffle: 'all' is unknown; .*layerwise",
    ),
    ("{training: a,", "{training: a, at: epoch-2,", r"a-p50\.at: 'epoch-2' is no state.*init"),
    (
        "{optimizer: {lr: 0.01}}",
        "{keep_best: true}",
        r"prunings\.a-p50\.finetune\.train\.keep_best: a retraining snapshots its last state",
    ),
]


def test_kept_states_are_states_of_a_training(tmp_path: Path) -> None:
    text = GOOD.replace("rewind_epoch: 1", "rewind_epoch: 1\n  keep_epochs: [2]\n  keep_best: true")
    text = text.replace("at: round-1", "at: best-round-1")
    for at in ("epoch-2", "best-2", "best"):
        params = load(tmp_path, text.replace("{training: a,", f"{{training: a, at: {at},"))
        assert params.recipe("a").keep_epochs == (2,)
        assert "keep_epochs" not in params.retraining_recipe("a-p50").model_dump()


def test_the_best_state_needs_a_validation_split(tmp_path: Path) -> None:
    text = GOOD.replace("name: digits, val_size: 200", "name: digits")
    load(tmp_path, text)
    wanted = text.replace("batch_size: 32", "keep_best: true")
    with pytest.raises(
        ParamsError,
        match=r"params\.yaml: trainings\.b\.train\.keep_best: true needs a validation split.*"
        r"set data\.val_size",
    ):
        load(tmp_path, wanted)


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_bad_input_names_file_key_and_known_values(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(ParamsError, match=message) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert "params.yaml" in str(caught.value)


def test_no_file_and_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="expected blocks such as"):
        load(tmp_path, "- a\n- b\n")


def test_unknown_entries_list_the_known_ones(tmp_path: Path) -> None:
    params = load(tmp_path)
    with pytest.raises(ParamsError, match=r"trainings\.zz: no such entry; \(known: a, b\)"):
        params.training("zz")
    with pytest.raises(ParamsError, match=r"prunings\.zz"):
        params.pruning("zz")


def test_merge_lays_blocks_over_blocks() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merge(base, {"a": {"y": 5}, "c": {"z": 1}}) == {
        "a": {"x": 1, "y": 5},
        "b": 3,
        "c": {"z": 1},
    }
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}
