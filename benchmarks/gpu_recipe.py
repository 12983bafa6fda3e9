"""OTO's VGG16-BN recipe on a GPU: seconds per epoch of each stage, extrapolated to 300 epochs.

    python -m benchmarks.gpu_recipe [--epochs 3] [--device cuda] [--steps 782]

`fit` with HSPG on random images of CIFAR-10's shape on the device, batch 64 (782 steps per epoch),
with a few epochs of warm-up and as many of the half-space stage. Wall time of the last epoch of
each, at whose end the host synchronises with the device. Variants: fp32; bf16 with channels_last;
the same with steps replayed as a CUDA graph. The last variant is skipped without a GPU (--device
cpu --steps 2 --epochs 1).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.epoch import HALF_SPACE
from benchmarks.loops import WARM, Setting, images, make_job
from pipeline.data.splits import TensorSplit
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import SECONDS, Silent

FORMS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "bf16, channels_last, cuda_graph": {
        "precision": "bf16",
        "channels_last": True,
        "cuda_graph": True,
    },
}
WARMUP, ALL = 75, 300  # epochs of the recipe


class Seconds(Silent):
    """Records the time of every epoch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None:
        del epoch, step
        self.found.append(values[SECONDS])


def stages(setting: Setting, split: TensorSplit, epochs: int, steps: int) -> tuple[float, float]:
    """Seconds per epoch of the warm-up and of the half-space stage."""
    options = {**setting.options, "warmup_epochs": epochs}
    job, _ = make_job(replace(setting, options=options), split, steps - WARM)
    recipe = job.recipe.model_copy(update={"epochs": 2 * epochs})
    observer = Seconds()
    with tempfile.TemporaryDirectory() as folder:
        fit(replace(job, recipe=recipe), CheckpointFolder(Path(folder), "benchmark"), observer)
    return observer.found[epochs - 1], observer.found[-1]


@click.command(help=__doc__)
@click.option("--epochs", default=3, show_default=True, help="of each stage")
@click.option("--steps", default=HALF_SPACE.steps_per_epoch, show_default=True)
@click.option("--device", default="cuda", show_default=True)
def main(epochs: int, steps: int, device: str) -> None:
    split = images()
    for name, form in FORMS.items():
        if device == "cpu" and form.get("cuda_graph"):
            continue
        recipe = {**HALF_SPACE.recipe, **form}
        setting = replace(HALF_SPACE, device=device, recipe=recipe)
        warm, half = stages(setting, split, epochs, steps)
        minutes = (WARMUP * warm + (ALL - WARMUP) * half) / 60
        whole = f"{ALL} epochs of {steps} steps: {minutes:7.1f} min"
        sys.stdout.write(f"{name:34}{warm:8.2f} s {half:8.2f} s  {whole}\n")
    if device != "cpu":
        sys.stdout.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")


if __name__ == "__main__":
    main()
