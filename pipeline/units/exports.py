"""A pruned network as a file that needs none of its code: a torch.export program, or ONNX.

The number of examples stays free. Each file is loaded again and compared with the network, at the
example and at twice as many examples, before it gets its name.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

TOLERANCE = 1e-4
"""Largest difference of outputs over the largest output: float32 rounding."""

Run = Callable[[tuple[Any, ...], dict[str, Any]], list[Tensor]]


def save_program(model: nn.Module, example: Any, path: Path | str) -> float:
    """Write what `torch.export.load(path).module()` computes: `model` in evaluation mode.

    Args:
        example: a tensor, a tuple of positional or a dict of keyword arguments; the first
            dimension of every tensor counts examples.

    Returns:
        the largest relative difference seen.

    Raises:
        ValueError: the file computes something else.
    """
    args, kwargs = _batched(example)

    def write(file: Path) -> Run:
        shapes = _free(args, kwargs)
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
        torch.export.save(program, file)
        again = torch.export.load(file).module()
        return lambda a, k: _tensors(again(*a, **k))

    return _checked(model, (args, kwargs), Path(path), write)


def save_onnx(model: nn.Module, example: Any, path: Path | str) -> float:
    """The same as one ONNX file, run by onnxruntime for the comparison.

    Raises:
        ImportError: the extra is missing: pip install -e .[onnx].
        ValueError: the file computes something else.
    """
    runtime = importlib.import_module("onnxruntime")
    args, kwargs = _batched(example)

    def write(file: Path) -> Run:
        more = {"dynamo": True, "external_data": False, "verbose": False}
        shapes = _free(args, kwargs)
        torch.onnx.export(model, args, file, kwargs=kwargs, dynamic_shapes=shapes, **more)
        session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]

        def run(a: tuple[Any, ...], k: dict[str, Any]) -> list[Tensor]:
            given = [x.numpy() for x in _tensors((a, k))]
            return [
                torch.from_numpy(y)
                for y in session.run(None, dict(zip(names, given, strict=False)))
            ]

        return run

    return _checked(model, (args, kwargs), Path(path), write)


@torch.no_grad()
def _checked(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    path: Path,
    write: Callable[[Path], Run],
) -> float:
    training = model.training
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.eval()
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn of their own future
            file = Path(folder) / path.name
            run, worst = write(file), 0.0
            for args, kwargs in (inputs, _doubled(inputs)):
                want = _tensors(model(*args, **kwargs))
                worst = max(worst, _difference(want, run(args, kwargs)))
            if not worst <= TOLERANCE:
                raise ValueError(
                    f"{path.name}: outputs differ by {worst:.1e} (relative) from those of "
                    f"{type(model).__name__}: nothing was written"
                )
            os.replace(file, path)
    finally:
        model.train(training)
    return worst


def _batched(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, with two examples at least: one is a special case."""
    if isinstance(example, Mapping):
        inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), dict(example))
    else:
        inputs = (tuple(example) if isinstance(example, (list, tuple)) else (example,), {})
    few = any(len(x) < 2 for x in _tensors(inputs))
    return _doubled(inputs) if few else inputs


def _doubled(inputs: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: torch.cat((x, x)), inputs)


def _free(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The shapes as torch.export takes them, one name for the number of examples."""
    batch = torch.export.Dim("batch", min=2)
    shapes = pytree.tree_map(
        lambda x: {0: batch} if isinstance(x, Tensor) else None, (args, kwargs)
    )
    return shapes[1] if kwargs else shapes[0]


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def difference(want: Any, found: Any) -> float:
    """Largest difference of outputs over the largest output; infinite where shapes differ."""
    return _difference(_tensors(want), _tensors(found))


def _difference(want: list[Tensor], found: list[Tensor]) -> float:
    if [x.shape for x in want] != [x.shape for x in found]:
        return float("inf")
    scale = max((float(x.abs().max()) for x in want), default=0.0)
    worst = max((float((a - b).abs().max()) for a, b in zip(want, found, strict=True)), default=0.0)
    return worst / scale if scale else worst
