"""Image files: file names, decoding, work in parallel, one error for many problems."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.data.files import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")
SHOWN = 20  # problems that one message lists
_T = TypeVar("_T")
_R = TypeVar("_R")


def decode(path: Path, data: bytes | None = None) -> Any:
    """The file as an RGB `PIL.Image`. 16-bit grey levels are divided by 257, not clipped at 255.

    Args:
        data: the content of the file, if it has already been read.

    Raises:
        DataError: the file is not an image, is truncated, or cannot be converted to 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            return _rgb(image)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise DataError(f"{path}: cannot be decoded ({error}); restore or remove it") from error


def _rgb(image: Any) -> Any:
    from PIL import Image

    # Older versions of Pillow read a 16-bit grey PNG as mode "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels, mode {image.mode}: save it with 8 or 16 bits per channel")
    return image.convert("RGB")


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_parallel(work: Callable[[_T], _R], items: Sequence[_T], what: str) -> list[_R]:
    """`work` of every item, in order, in one thread per core, with a progress bar on a terminal.

    Pillow and hashlib release the GIL, so threads are enough.
    """
    from tqdm import tqdm

    hidden = not sys.stderr.isatty()
    with ThreadPoolExecutor(usable_cores()) as pool:
        done = pool.map(work, items)
        return list(tqdm(done, what, len(items), unit="file", disable=hidden, leave=False))


def refuse(problems: Iterable[str], what: str) -> None:
    """Raise one DataError that counts all `problems` and lists the first `SHOWN`, one per line.

    Raises:
        DataError: `problems` is not empty.
    """
    found = list(problems)
    if not found:
        return
    lines = [f"{len(found)} {what}:", *(f"  {p[:300]}" for p in found[:SHOWN])]
    if len(found) > SHOWN:
        lines.append(f"  ... and {len(found) - SHOWN} more")
    raise DataError("\n".join(lines))
