"""Files of a retrained network that other programs load: `finetune.deliver` in params.yaml.

artifacts/finetune/<pruning>/delivered/model.pt2    torch.export, any number of examples
artifacts/finetune/<pruning>/delivered/model.onnx   ONNX, the same
artifacts/finetune/<pruning>/delivered/             the folder of the network's own library

Each is loaded again and compared with the network in memory; the largest relative difference of the
outputs goes into spec.json, key "deliver".
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pipeline.study.params.schema import Form
from pipeline.study.records.artifacts import DELIVERED, NetworkSpec
from pipeline.units.exports import TOLERANCE, difference, save_onnx, save_program

FILES = {"program": "model.pt2", "onnx": "model.onnx"}
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_forms(forms: Sequence[Form], network: NetworkSpec) -> None:
    """Before any training.

    Raises:
        ValueError: a form that this network or this installation does not have.
    """
    if "folder" in forms and network.registered.delivery is None:
        raise ValueError(
            f"finetune.deliver: {network.family}/{network.name} has no folder of another library "
            "(networks of transformers do); take program or onnx"
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if "onnx" in forms and missing:
        raise ValueError(
            f"finetune.deliver: onnx needs {', '.join(missing)}: pip install -e .[onnx]"
        )


def write_forms(
    model: nn.Module, network: NetworkSpec, forms: Sequence[Form], artifact: Path
) -> dict[str, float]:
    """Write the folder that the network's library has, and what else is asked for.

    Returns:
        the difference of every form asked for.

    Raises:
        ValueError: a file computes something else; it is not written.
    """
    folder, found = artifact / DELIVERED, dict[str, float]()
    own = network.registered.delivery
    if own is not None:
        own.save(model, folder)
    on_cpu = copy.deepcopy(model).cpu().eval() if forms else model
    example = network.example(2)
    if "folder" in forms:
        assert own is not None
        with torch.no_grad():
            loaded = own.load(folder).cpu().eval()
            found["folder"] = difference(on_cpu(example), loaded(example))
        if not found["folder"] <= TOLERANCE:
            raise ValueError(f"{folder}: outputs differ by {found['folder']:.1e} (relative)")
    for form, save in (("program", save_program), ("onnx", save_onnx)):
        if form in forms:
            found[form] = save(on_cpu, example, folder / FILES[form])
    return found
