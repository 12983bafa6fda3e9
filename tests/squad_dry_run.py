"""studies/oto-squad run whole on a SQuAD of a few sentences: real stages, tiny BERTs, few steps.

By hand, every row of the study, or some:

    python -m tests.squad_dry_run /tmp/dry
    python -m tests.squad_dry_run /tmp/dry --only bert-hspg-u50-s0-zeros
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor

from models.bert import encoder_qa
from pipeline.data.info import DatasetInfo
from pipeline.files import file_sha256
from tests import study
from tests.squad_world import TINY, write_squad, write_tokenizer

NAME = "oto-squad"


def place(folder: Path, only: Collection[str] = ()) -> Path:
    """Put the study, cut down, into a copy of the repository with all it needs.

    As in the study: every row and its recipe, epochs included. Not: data, sizes of network, windows
    and batches, steps between two adaptations of epsilon.

    Args:
        only: the prunings that stay, with their trainings; none = all.

    Returns:
        The folder of the study.
    """
    study.create(folder)
    write_squad(folder / "data/squad")
    write_tokenizer(folder / "data/tokenizer")
    weights = folder / "data/encoder.safetensors"
    save_file(hub_state(), weights)
    home = folder / "studies" / NAME
    yaml = YAML(typ="rt")
    params = yaml.load(study.REPOSITORY / "studies" / NAME / "params.yaml")
    keep(params, only)
    cut(params, weights)
    yaml.dump(params, home / "params.yaml")
    return home


def hub_state() -> dict[str, Tensor]:
    """A tiny encoder in the form of bert-base-uncased's file on the hub: old names of LayerNorm's
    scale and shift, a pooler, heads of other tasks."""
    torch.manual_seed(3)
    network = encoder_qa(DatasetInfo("squad", (3, 32), 2), pooler=True, **TINY)
    named = {k: v for k, v in network.state_dict().items() if not k.startswith("qa_outputs")}
    old = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, before in old:
        named = {k.replace(new, before): v for k, v in named.items()}
    return {
        **named,
        "cls.predictions.bias": torch.zeros(3),
        "cls.seq_relationship.bias": torch.ones(2),
    }


def keep(params: Any, only: Collection[str]) -> None:
    """Leave out the other prunings, and the trainings that nothing then uses."""
    for key in [k for k in params["prunings"] if only and k not in only]:
        del params["prunings"][key]
    used = {p["training"] for p in params["prunings"].values()}
    for key in [k for k in params["trainings"] if k not in used]:
        del params["trainings"][key]


def cut(params: Any, weights: Path) -> None:
    """Small data, a small network, its weights."""
    params["data"]["name"] = "squad_reconstructed"
    params["data"]["squad"] = {
        "tokenizer": "../../data/tokenizer",
        "max_length": 32,
        "stride": 8,
        "query_length": 8,
    }
    params["train"]["batch_size"] = 16
    params["evaluate"] |= {"batch_size": 16, "latency_batches": [1], "latency_repeats": 3}
    params["methods"]["hspg"]["adapt_epsilon_steps"] = 2
    for training in params["trainings"].values():
        training["model"] = {**training["model"], **TINY}
        training["weights"] = {
            **training["weights"],
            "path": "../../data/encoder.safetensors",
            "sha256": file_sha256(weights),
        }


def repro(folder: Path, *arguments: str) -> list[str]:
    """`dvc repro` in the study; the stages that executed."""
    return study.repro(folder / "studies" / NAME, *arguments)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, help="a pruning; several are allowed, none = all")
def main(folder: Path, only: tuple[str, ...]) -> None:
    home = place(folder, only)
    repro(folder)
    click.echo((home / "reports/tables/main.md").read_text())


if __name__ == "__main__":
    main()
