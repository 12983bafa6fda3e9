"""Atomic writing of files, and files with trees of tensors and plain values.

Imports no other package of this project; every package may import it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # many commands read JSON and no tensors
    from torch import Tensor

_KEY = "espalier"  # only one metadata key: safetensors writes several in random order
_FULL = {errno.ENOSPC, errno.EDQUOT}
_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"


class DamagedFileError(ValueError):
    """A file exists, but its content is not what was written."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is synced and renamed to `path`.

    On any error (a full disk, a kill) the old `path` is unchanged.

    Raises:
        OSError: as raised inside; on a full disk it names the file and the free space.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming_full_disk(path):
            yield temporary
            with temporary.open("rb") as f:
                os.fsync(f.fileno())
            temporary.chmod(0o644)  # safetensors files are owner-only; a DVC cache is shared
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Name `path` and the free space if what is written inside finds the disk full.

    Raises:
        OSError: the disk is full; other errors pass as they are.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else _os_error(str(error))
        if code not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OSError(code, f"{path}: the disk is full ({free:.1f} MB free)") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON atomically: sorted keys, indent of two, a newline at the end.

    Raises:
        ValueError: a number is not finite.
    """
    write_text(path, json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DamagedFileError: the content is not JSON; names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFileError(f"{path}: not valid JSON ({error})") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order.

    Raises:
        TypeError: a tensor is not dense (sparse, quantized); names it.
    """
    h = hashlib.sha256()
    for name in sorted(tensors):
        t = _dense(tensors[name], name)
        h.update(f"\0{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        h.update(_bytes(t))
    return h.hexdigest()


def save_tree(path: Path, tree: Any) -> None:
    """Save a tree of dicts, lists, tuples, numbers, strings, None and tensors, atomically.

    The result is one safetensors file: tensors as tensors, the rest as JSON in its header, a CRC
    over both.

    Raises:
        TypeError: the tree contains something else, e.g. a sparse tensor.
        OSError: writing failed, e.g. the disk is full; an older file at `path` is intact.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    encoded = json.dumps(_encode(tree, "", tensors), allow_nan=True)
    crc = _crc(encoded, tensors)
    with replacing(path) as temporary:
        metadata = {_KEY: json.dumps({"crc": crc, "tree": encoded})}
        try:
            save_file(tensors, str(temporary), metadata=metadata)
        except SafetensorError as error:  # its text ends with "(os error 28)"
            raise OSError(_os_error(str(error)), f"{path}: not written: {error}") from error


def load_tree(path: Path) -> Any:
    """Inverse of `save_tree`; tensors are on the CPU.

    Another process may replace the file meanwhile.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: truncated, altered, or not written by `save_tree`; names the file.
    """
    path = Path(path)
    while True:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        version = _version(path)
        try:
            return _load(path)
        except DamagedFileError:
            if _version(path) == version:
                raise
            # safetensors opens a file twice by name, so that a file which is replaced in between
            # yields the header of the old file and the tensors of the new one


def _version(path: Path) -> tuple[int, ...]:
    """Differs when another file has been moved to `path`."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _load(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as f:
            metadata = (f.metadata() or {})[_KEY]
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        header = json.loads(metadata)
        encoded, crc = header["tree"], header["crc"]
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise DamagedFileError(f"{path}: damaged or not an Espalier file ({error})") from error
    if crc != _crc(encoded, tensors):
        raise DamagedFileError(f"{path}: damaged, its checksum does not match its content")
    return _decode(json.loads(encoded), tensors)


def _os_error(text: str) -> int:
    found = re.search(r"os error (\d+)", text)
    return int(found[1]) if found else errno.EIO


def _dense(tensor: Tensor, name: str) -> Tensor:
    """A contiguous copy on the CPU. Raises TypeError if `tensor` is not dense."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = str(tensor.layout).removeprefix("torch.")
        kind = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else kind
        raise TypeError(f"{name}: a {kind} tensor has no plain bytes; make it dense first")
    copied = torch.empty(tensor.shape, dtype=tensor.dtype)  # drops strides, conj and neg bits
    return copied.copy_(tensor.detach())


def _bytes(t: Tensor) -> memoryview:
    import torch

    flat = t.reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def _crc(encoded: str, tensors: Mapping[str, Tensor]) -> int:
    crc = zlib.crc32(encoded.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(_bytes(tensors[name]), crc)
    return crc


def _encode(node: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    import torch

    if isinstance(node, torch.Tensor):
        name = at or "tensor"
        if node.dtype is torch.complex128:  # safetensors has no such type
            raise TypeError(f"cannot save {node.dtype} at {name!r}; save its view_as_real")
        tensors[name] = _dense(node, name)
        return {_TENSOR: name}
    if isinstance(node, Mapping):
        if all(isinstance(k, str) for k in node):
            return {k: _encode(v, f"{at}/{k}", tensors) for k, v in node.items()}
        return {_PAIRS: [[k, _encode(v, f"{at}/{k}", tensors)] for k, v in node.items()]}
    if isinstance(node, tuple | list):
        items = [_encode(v, f"{at}/{i}", tensors) for i, v in enumerate(node)]
        return {_TUPLE: items} if isinstance(node, tuple) else items
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"cannot save {type(node).__name__} at {at or 'the root'!r}: not plain state")


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {_TENSOR}:
        return tensors[node[_TENSOR]]
    if node.keys() == {_TUPLE}:
        return tuple(_decode(v, tensors) for v in node[_TUPLE])
    if node.keys() == {_PAIRS}:
        return {k: _decode(v, tensors) for k, v in node[_PAIRS]}
    return {k: _decode(v, tensors) for k, v in node.items()}
