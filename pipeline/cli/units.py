"""Show what can be pruned in a network: `espalier units --training NAME [--html FILE]`.

For a network that is not in params.yaml: `--model FAMILY/NAME --input 3x32x32 --classes 10`.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.drawing import as_html
from pipeline.data.info import DatasetInfo
from pipeline.files import write_text
from pipeline.measure.describe import Description, as_text, describe
from pipeline.study import paths
from pipeline.study.params.load import Params, load_params
from pipeline.study.records.artifacts import NetworkSpec


def description_of(network: NetworkSpec, branches: bool = False) -> Description:
    """Trace a network, built but not trained, and count its MACs and parameters."""
    model = network.build().eval()
    return describe(model, network.example(), network.units(model, branches))


def network_of_training(params: Params, key: str) -> NetworkSpec:
    """The network of one entry of `trainings`. The shape of inputs comes from the prepared data.

    Raises:
        click.UsageError: the data has not been prepared.
    """
    from pipeline.data.prepared import load_prepared

    choice = params.training(key).model
    if not paths.PREPARED.exists():
        raise click.UsageError(
            f"{paths.PREPARED} is missing: run `dvc repro prepare-data` first, or give the "
            f"network by name: --model {choice.family}/{choice.name} --input 3x32x32"
        )
    return NetworkSpec.of(choice, load_prepared(paths.PREPARED).info)


def network_by_name(model: str, shape: str, classes: int) -> NetworkSpec:
    """A network by name and input shape.

    Raises:
        click.UsageError: not FAMILY/NAME, or not CxHxW.
    """
    family, slash, name = model.partition("/")
    sizes = shape.split("x")
    if not slash or len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise click.UsageError(
            f"expected --model FAMILY/NAME and --input CxHxW, got {model!r} and {shape!r}"
        )
    channels, height, width = (int(size) for size in sizes)
    info = DatasetInfo("by name", (channels, height, width), classes)
    network = NetworkSpec(family, name, {}, info)
    try:
        network.registered  # noqa: B018  asks the registry
    except KeyError as error:
        raise click.UsageError(f"--model: {error.args[0]}") from error
    return network


@click.command(help=__doc__)
@click.option("--training", help="an entry of `trainings` in params.yaml")
@click.option("--model", help="FAMILY/NAME of the registry, e.g. resnet_cifar/resnet20")
@click.option("--input", "shape", default="3x32x32", show_default=True, help="CxHxW of one example")
@click.option("--classes", default=10, show_default=True)
@click.option("--branches", is_flag=True, help="also branches of a residual stream, as a whole")
@click.option("--html", "file", type=click.Path(path_type=Path), help="also draw into this file")
def units(
    training: str | None,
    model: str | None,
    shape: str,
    classes: int,
    branches: bool,
    file: Path | None,
) -> None:
    if (training is None) == (model is None):
        raise click.UsageError("give either --training NAME or --model FAMILY/NAME")
    if training is not None:
        network = network_of_training(load_params(), training)
    else:
        network = network_by_name(model or "", shape, classes)
    description = description_of(network, branches)
    for line in as_text(description):
        click.echo(line)
    if file is not None:
        write_text(file, as_html(f"{network.family}/{network.name}", description))
        click.echo(f"\ndrawn into {file}")
