"""All methods compared on the same network and data, measured by one harness.

Candidates of one league compete: accuracy against the size of the network and against the cost of
training it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from reports.build.candidates import AXES, Axis, Candidate
from reports.build.significance import holm, sign_flip, smallest_p
from reports.build.style import Styles, short_names
from reports.build.table import (
    OF,
    OR_REFERENCE,
    TRAINED,
    Column,
    Table,
    make_table,
    over_seeds,
    with_reference,
)

MIN_SEEDS = 3  # fewer shared seeds are not tested
CLOSE = 5.0  # percentage points of non-zero MACs within which two methods did the same job


def front(rows: Sequence[Candidate], score: str, axis: str) -> set[int]:
    """Indices of the rows that no other row of their league beats (at least as good in both, better
    in one)."""
    spots = {i: (c.league, c.mean(score), c.mean(axis)) for i, c in enumerate(rows)}
    full = {i: (g, y, x) for i, (g, y, x) in spots.items() if y is not None and x is not None}
    return {
        i
        for i, (league, y, x) in full.items()
        if not any(
            other == league and b >= y and a <= x and (b > y or a < x)
            for other, b, a in full.values()
        )
    }


def compare_table(rows: Sequence[Candidate], score: str) -> Table:
    """Dense networks and prunings; sweep points have a table of their own and the page."""
    rows = [c for c in rows if c.kind != "one-shot"]
    fronts = {axis.key: front(rows, score, axis.key) for axis in AXES}
    columns = (
        Column("network", "network", "params.model"),
        Column("data", "data", "params.data"),
        Column("row", "row", "params.pruning"),
        Column("method", "method", "params.method"),
        Column("seeds", "seeds", "params.seed"),
        Column("score", f"final {score} (%)", f"metrics.final/{score}", "{:.2f}"),
        Column(
            "below", "below the best dense network (points)", f"metrics.final/{score}", "{:z.2f}"
        ),
        *(
            Column(a.key, f"{a.label} ({a.unit})", a.source, "{:.2f}" if a.of else "{:.3g}")
            for a in AXES
        ),
        Column("front", "Pareto front in", "computed"),
        Column("record", "record", "record_sha"),
    )
    columns = with_reference(columns, any(c.of for c in rows))
    title = (
        "Comparison: same network, data and harness; ± is the standard deviation over seeds; on "
        "the Pareto front = no row of this network has less of it and a higher score; training "
        "cost = 3 x MACs x examples, retraining included; MACs, not FLOPs"
    )
    if OF in columns:
        title += f"; sizes in percent of the dense network{OR_REFERENCE}"
    body = []
    for i, c in enumerate(rows):
        marks = [axis.label for axis in AXES if i in fronts[axis.key]]
        body.append((_cells(c, score) | {"front": ", ".join(marks) or None}, c.runs))
    return make_table(("compare", title, "row"), columns, body)


def pairs_table(rows: Sequence[Candidate], score: str) -> Table:
    """Pairs of methods of about equal size on one network: is the difference significant?"""
    pairs = [
        (a, b, a.paired(b, score))
        for a, b in combinations([c for c in rows if c.kind == "pruning"], 2)
        if a.league == b.league and a.method != b.method and _close(a, b)
    ]
    pairs = [pair for pair in pairs if len(pair[2]) >= MIN_SEEDS]
    ps = [sign_flip(differences) for _, _, differences in pairs]
    columns = (
        Column("network", "network", "params.model"),
        Column("data", "data", "params.data"),
        Column("row", "A", "params.pruning"),
        Column("rival", "B", "params.pruning"),
        Column("seeds", "seeds", "params.seed"),
        Column("difference", f"A - B: {score} (points)", f"metrics.final/{score}", "{:z.2f}"),
        Column("p", "p", "metrics.computed", "{:.3f}"),
        Column("least", "smallest p that so many seeds can give", "metrics.computed", "{:.3f}"),
        Column("holm", "p, adjusted for all pairs (Holm)", "metrics.computed", "{:.3f}"),
    )
    title = (
        "Pairs of methods: exact two-sided sign-flip test of the differences at shared seeds (at "
        f"least {MIN_SEEDS}); pairs whose non-zero MACs differ by at most {CLOSE:g} points"
    )
    body = [
        (
            {
                "network": a.network, "data": a.data, "row": a.name, "rival": b.name,
                "seeds": len(d), **over_seeds("difference", d),
                "p": p, "least": smallest_p(len(d)), "holm": q, "status": "done",
            },
            (*a.runs, *b.runs),
        )
        for (a, b, d), p, q in zip(pairs, ps, holm(ps), strict=True)
    ]  # fmt: skip
    return make_table(("compare-pairs", title, "row"), columns, body)


def _cells(c: Candidate, score: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "network": c.network, "data": c.data, "row": c.name, "method": c.method,
        "seeds": len(c.seeds), "status": "done", "of": c.of or TRAINED,
        "record": " ".join(sha[:12] for _, sha in c.runs),
    }  # fmt: skip
    for key in (score, "below", *(axis.key for axis in AXES)):
        row |= over_seeds("score" if key == score else key, c.values.get(key, ()))
    return row


def _close(a: Candidate, b: Candidate) -> bool:
    one, other = a.mean("macs_nonzero"), b.mean("macs_nonzero")
    return one is not None and other is not None and abs(one - other) <= CLOSE


def to_json(
    rows: Sequence[Candidate], axes: Sequence[Axis], scores: Sequence[str], styles: Styles
) -> str:
    """What the page shows, as JSON without a character that could end a script element."""
    short = {
        (league, name): text
        for league in {c.league for c in rows}
        for names in [[c.name for c in rows if c.league == league and c.kind != "one-shot"]]
        for name, text in zip(names, short_names(names), strict=True)
    }
    value = {
        "axes": [{"key": a.key, "label": a.label, "unit": a.unit, "exact": a.exact} for a in axes],
        "scores": list(scores),
        "rows": [
            {
                "name": c.name, "network": c.network, "data": c.data, "method": c.method,
                "kind": c.kind, "settings": c.settings, "seeds": c.seeds,
                "short": short.get((c.league, c.name), c.name), "line": c.line,
                "mark": styles(c.method, c.styled_as).marker,
                "values": {k: [float(f"{v:.7g}") for v in vs] for k, vs in c.values.items()},
                "records": [sha[:12] for _, sha in c.runs],
            }
            for c in rows
        ],
    }  # fmt: skip
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
