"""How much is pruned: the `target` of a pruning in params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class LatencyProbe(BaseModel):
    """How a `latency` target measures.

    Attributes:
        batch_size: examples in a forward pass.
        threads: CPU threads.
        repeats: forward passes of the dense and the pruned network, in turns, per measurement; the
            medians count.
        probes: measurements at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = 1
    repeats: Annotated[int, Field(ge=3)] = 20
    probes: Annotated[int, Field(ge=1)] = 20


class Target(BaseModel):
    """How much is removed.

    Attributes:
        rule: none; zeros: exactly the units that training brought to zero; fraction: `value` is the
            fraction of units removed; macs, params: the fraction of the dense cost removed;
            latency: the fraction of the dense network's measured time removed. Two searches by
            measurement find different plans, so the plan is stored and everything after uses it.
        value: in [0, 1).
        scope: global ranks all units together; layer removes the same fraction in every layer; erk
            keeps Erdos-Renyi-kernel densities (weights only); random keeps a random fraction per
            layer, drawn from the seed of the training (random_widths.py).
        layer_values: for scope layer and rule fraction: layers with their own `value`, by name.
        narrowest: for scope random: lower bound of a layer's draw; the upper bound is 1.
        round_to: structured: the channels kept per group are rounded up to a multiple. A unit may
            be several channels (a head, a group of a GroupNorm).
        min_units: structured: units kept per group at least.
        closest: macs, params: the plan closest to the budget, even if it costs slightly more;
            otherwise the budget is never exceeded.
        fill: macs, params: spend the rest of the budget on the most salient removed units that
            still fit. With `closest`, one more unit of any group may exceed it.
        latency: how to measure, for the rule of that name.

    `zeros` ignores `round_to` and `min_units`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["none", "zeros", "fraction", "macs", "params", "latency"]
    value: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    scope: Literal["global", "layer", "erk", "random"] = "global"
    narrowest: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    round_to: Annotated[int, Field(ge=1)] = 1
    min_units: Annotated[int, Field(ge=0)] = 1
    closest: bool = False
    fill: bool = False
    latency: LatencyProbe | None = None
    layer_values: Mapping[str, Annotated[float, Field(ge=0.0, lt=1.0)]] = {}

    @model_serializer(mode="wrap")
    def _without_unasked(self, standard: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit fields added later at their default, so that published record hashes stay valid."""
        fields = standard(self) | {"latency": self.probe.model_dump()}
        asked = {"fill": self.fill, "latency": self.rule == "latency"}
        asked |= {"narrowest": self.scope == "random", "layer_values": bool(self.layer_values)}
        return {key: value for key, value in fields.items() if asked.get(key, True)}

    @model_validator(mode="after")
    def _fits_the_rule(self) -> Target:
        measured = self.rule in ("fraction", "macs", "params", "latency")
        if measured and not {"value", "layer_values"} & self.model_fields_set:
            raise ValueError(f"value: missing; add the fraction that rule: {self.rule} removes")
        ranked = self.scope in ("global", "random")
        if self.fill and not (self.rule in ("macs", "params") and ranked):
            raise ValueError("fill: needs rule: macs or params, and scope: global or random")
        if self.narrowest and self.scope != "random":
            raise ValueError(f"narrowest: of scope: random, not of scope: {self.scope}")
        if self.layer_values and (self.rule, self.scope) != ("fraction", "layer"):
            raise ValueError("layer_values: needs rule: fraction and scope: layer")
        if self.latency is not None and self.rule != "latency":
            raise ValueError(f"latency: settings of rule: latency, not of rule: {self.rule}")
        if self.closest and self.rule == "latency":
            raise ValueError("closest: not for rule: latency, whose measurements are not exact")
        return self

    @property
    def probe(self) -> LatencyProbe:
        """How to measure time."""
        return self.latency or LatencyProbe()
