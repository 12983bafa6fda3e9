"""A study that needs ImageNet, run whole on a generated folder: real stages, few steps.

By hand, with the study's own networks:

    python -m tests.imagenet_dry_run oto-imagenet /tmp/dry --size 64
    python -m tests.imagenet_dry_run pfs-imagenet/resnet50 /tmp/dry --only <pruning>
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from tests import study
from tests.imagenet_world import write_imagenet

CUTS: Mapping[str, Any] = {
    "data.size": 32,
    "train.batch_size": 16,
    "train.checkpoint_steps": 1,
    "evaluate.batch_size": 16,
    "evaluate.latency_batches": [1],
    "evaluate.latency_repeats": 3,
}
"""What every dry run changes; the rest of the study's params.yaml stands."""

OWN: Mapping[str, Mapping[str, Any]] = {
    "oto-imagenet": {
        "train.epochs": 2,
        "methods.hspg.warmup_epochs": 1,
        "methods.hspg.penalty_milestones": [1],
        "methods.hspg.epsilon": 0.9,  # and a large penalty: two epochs zero no channel of theirs
        "methods.hspg.penalty": 7.0,
        "methods.dhspg.start_epochs": 1,
        "trainings.imagenet-resnet50-dhspg-s0.train.epochs": 2,
        "trainings.imagenet-resnet50-dhspg-s0.train.batch_size": 16,
    },
    "pfs-imagenet/mobilenet": {"data.val_size": 8, "finetune.train.batch_size": 16},
    "pfs-imagenet/resnet50": {"data.val_size": 8, "finetune.train.batch_size": 16},
}
"""What the dry run of one study changes as well."""


def place(folder: Path, name: str, only: Collection[str] = (), **more: Any) -> Path:
    """Put a copy of a study, cut down, into a copy of the repository with a generated ImageNet.

    Args:
        only: the prunings that stay, with their trainings; none = all.
        more: dotted keys of params.yaml that change, with their values, after `CUTS` and `OWN`.

    Returns:
        The folder of the study.
    """
    if not (folder / "data/imagenet").is_dir():
        study.create(folder)
        write_imagenet(folder / "data/imagenet")
    home = folder / "studies" / name
    yaml = YAML(typ="rt")
    params = yaml.load(study.REPOSITORY / "studies" / name / "params.yaml")
    _keep(params, only)
    for pruning in params["prunings"].values():
        if "finetune" in pruning:
            pruning["finetune"]["epochs"] = 1
    for key, value in {**CUTS, **OWN[name], **more}.items():
        _set(params, key.split("."), value)
    yaml.dump(params, home / "params.yaml")
    return home


def _keep(params: Any, only: Collection[str]) -> None:
    """Leave out the other prunings, and the trainings that nothing then uses."""
    for key in [k for k in params["prunings"] if only and k not in only]:
        del params["prunings"][key]
    used = {p["training"] for p in params["prunings"].values()}
    for key in [k for k in params["trainings"] if k not in used]:
        del params["trainings"][key]


def _set(tree: Any, path: list[str], value: Any) -> None:
    *above, last = path
    for part in above:
        if part not in tree:
            return  # of a training that was left out
        tree = tree[part]
    tree[last] = value


def repro(folder: Path, name: str, stage: str = "") -> list[str]:
    """`dvc repro` of that study, or of a stage, in its folder; what executed."""
    return study.repro(folder / "studies" / name, *filter(None, [stage]))


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(sorted(OWN)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, help="a pruning; several are allowed, none = all")
@click.option("--size", default=CUTS["data.size"], show_default=True)
def main(name: str, folder: Path, only: tuple[str, ...], size: int) -> None:
    home = place(folder, name, only, **{"data.size": size})
    subprocess.run(["dvc", "repro"], cwd=home, env=study.environment(home), check=True)
    click.echo((home / "reports/tables/main.md").read_text())


if __name__ == "__main__":
    main()
