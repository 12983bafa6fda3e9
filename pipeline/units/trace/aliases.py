"""Which tensors of a traced forward lie in one storage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


class Aliases:
    """Of a list that grows; it is read only where an operator wrote through a view."""

    def __init__(self, alive: Sequence[Tensor]) -> None:
        self._alive = alive
        self._read = 0
        self._of: dict[int, dict[int, Tensor]] = {}

    def of(self, tensor: Tensor) -> Iterable[Tensor]:
        """Tensors in its storage, each once, in order."""
        for x in self._alive[self._read :]:
            self._of.setdefault(_address(x), {})[id(x)] = x
        self._read = len(self._alive)
        return self._of.get(_address(tensor), {}).values()


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
