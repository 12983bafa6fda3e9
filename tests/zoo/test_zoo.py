"""No network of the list is cut wrongly: a fast slice always, all of it in `make zoo`."""

from __future__ import annotations

import pytest

from tests.zoo.check import measure
from tests.zoo.networks import Network, networks

FAST = (
    *("torchvision/mobilenet_v3_small", "torchvision/squeezenet1_1", "transformers/llama"),
    *("transformers/bert", "transformers/gpt2", "transformers/qwen3", "transformers/vit"),
)
ALL = {network.id: network for network in networks()}


def assert_exact(network: Network) -> None:
    row = measure(network)
    assert row.traced, row.reason
    assert row.exact, f"{row.difference}: {row.reason}"


@pytest.mark.parametrize("name", FAST)
def test_the_fast_slice(name: str) -> None:
    assert_exact(ALL[name])


@pytest.mark.zoo
@pytest.mark.parametrize("name", [name for name in ALL if name not in FAST])
def test_the_whole_list(name: str) -> None:
    assert_exact(ALL[name])
