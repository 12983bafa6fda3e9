"""Check the settings of one pruning against each other, before any work."""

from __future__ import annotations

from pipeline.selection.saliency import KNOWN
from pipeline.study.params.schema import FinetuneDefaults, MatchCost, PruningParams
from pipeline.training.options.ema import EMA
from pipeline.units.groups import Granularity


def check(pruning: PruningParams, ranked: Granularity, retraining: FinetuneDefaults) -> None:
    """
    Args:
        ranked: granularity of the units that the training's method ranks.
        retraining: the `finetune` block that applies to this pruning.

    Raises:
        ValueError: two settings exclude each other; the message begins with the key of one.
    """
    granularity = pruning.granularity or ranked
    _check_saliency(pruning, granularity, ranked)
    _check_target(pruning, granularity)
    _check_groups(pruning, granularity)
    _check_shuffle(pruning, granularity, retraining)
    if pruning.finetune.draw and retraining.start_from != "random":
        raise ValueError(
            f"finetune.draw: {pruning.finetune.draw} is a draw of random weights; set "
            f"finetune.start_from: random (it is {retraining.start_from})"
        )
    epochs, rule = retraining.epochs, pruning.target.rule
    if isinstance(epochs, MatchCost) and epochs.match == "target" and rule != "macs":
        raise ValueError(
            f"finetune.epochs.match: 'target' needs target.rule: macs (it is {rule}); "
            "'macs' goes by what was counted"
        )


def _check_saliency(pruning: PruningParams, granularity: Granularity, ranked: Granularity) -> None:
    if pruning.saliency == "method" and granularity is not ranked:
        raise ValueError(
            f"granularity: {granularity.value}, but the method of {pruning.training} ranks "
            f"{ranked.value} units; name a saliency (known: {', '.join(KNOWN[granularity])})"
        )
    if pruning.saliency not in ("method", *KNOWN[granularity]):
        raise ValueError(
            f"saliency: {pruning.saliency!r} does not rank {granularity.value} units "
            f"(known: method, {', '.join(KNOWN[granularity])})"
        )


def _check_target(pruning: PruningParams, granularity: Granularity) -> None:
    rule = pruning.target.rule
    if rule in ("macs", "params", "latency") and granularity is Granularity.UNSTRUCTURED:
        raise ValueError(
            f"target.rule: {rule!r} counts what surgery removes and needs granularity: structured "
            "(this pruning masks single weights: use rule: fraction)"
        )
    if pruning.reference is not None and rule not in ("macs", "params"):
        raise ValueError("reference: only the rules macs and params have a cost")
    if rule == "zeros" and pruning.at == EMA:
        raise ValueError(
            "target.rule: 'zeros' finds none at: ema: an average remembers what a weight was "
            "before training brought it to zero; set at: final, or a rule with a value"
        )


def _check_groups(pruning: PruningParams, granularity: Granularity) -> None:
    if granularity is Granularity.UNSTRUCTURED and (pruning.groups or pruning.skip):
        key = "groups" if pruning.groups else "skip"
        raise ValueError(f"{key}: chooses channel groups and needs granularity: structured")
    if granularity is Granularity.STRUCTURED and pruning.layers != "all":
        raise ValueError(
            f"layers: {pruning.layers} chooses single weights and needs granularity: unstructured"
        )


def _check_shuffle(
    pruning: PruningParams, granularity: Granularity, retraining: FinetuneDefaults
) -> None:
    if pruning.shuffle == "none":
        return
    if granularity is not Granularity.UNSTRUCTURED:
        raise ValueError(f"shuffle: {pruning.shuffle!r} is for unstructured masks only")
    if pruning.target.rule == "zeros" and retraining.start_from == "current":
        raise ValueError(
            "shuffle: the weights that training removed are zero and would come back as such; "
            "set finetune.start_from: init, rewind or random"
        )
