"""A few faults of every kind; `make faults` goes on for as long as one likes."""

from __future__ import annotations

import pytest

from tests.faults.injector import Injector


@pytest.fixture(scope="module")
def injector(tmp_path_factory) -> Injector:
    return Injector(tmp_path_factory.mktemp("faults"), seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "damage", "lose"])
def test_a_fault_ends_in_the_same_bytes_or_one_line(injector: Injector, kind: str) -> None:
    verdict = injector.apply(getattr(injector, kind))
    assert verdict.survived, verdict
