"""Draw the channel groups of a network as one self-contained HTML file."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.measure.describe import Description, GroupRow, Part

_PAGE = Path(__file__).with_name("drawing.html")


def as_html(title: str, description: Description) -> str:
    """A page with a search box over all layers, expandable rows for the groups, and arcs from each
    group to the groups that its channels feed."""
    d = description
    positions = {row.name: i for i, row in enumerate(d.rows)}
    edges = [[i, positions[name]] for i, row in enumerate(d.rows) for name in row.feeds]
    sources: dict[str, list[str]] = {row.name: [] for row in d.rows}
    for row in d.rows:
        for name in row.feeds:
            sources[name].append(row.name)
    loose = f"<p>In no group: {_layers(d.loose)}</p>" if d.loose else ""
    fills = {
        "title": html.escape(title),
        "summary": html.escape(_summary(d)),
        "rows": "\n".join(_row(i, row, d, sources[row.name]) for i, row in enumerate(d.rows)),
        "loose": loose,
        "edges": json.dumps(edges),
    }
    # One pass over the template, so that inserted text is not searched for further marks.
    first, *rest = _PAGE.read_text(encoding="utf-8").split("{{")
    pieces = [first]
    for piece in rest:
        key, _, after = piece.partition("}}")
        pieces += [fills[key], after]
    return "".join(pieces)


def _summary(d: Description) -> str:
    can = sum(row.prunable for row in d.rows)
    return (
        f"{d.params:,} parameters · {d.macs:,} MACs · {can} of {len(d.rows)} channel groups "
        f"prunable, {', '.join((f'{d.prunable_channels:,} of {d.channels:,} channels', *d.others))}"
    )


def _row(i: int, row: GroupRow, d: Description, sources: Iterable[str]) -> str:
    state = "prunable" if row.prunable else "fixed"
    why = "prunable" if row.prunable else f"not prunable: {row.reason}"
    lists = [
        ("made by", _layers(row.producers)),
        ("scaled by", _layers(row.norms)),
        ("read by", _layers(row.consumers)),
        ("members", _layers(row.members)),
        ("comes from", _links(sources)),
        ("feeds", _links(row.feeds)),
    ]
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in lists if value)
    return (
        f'<details class="{state}" id="g{i}" data-name="{html.escape(row.name)}"><summary>'
        f'<span class="name">{html.escape(row.name)}</span>'
        f'<span class="num">{row.size:,}</span>'
        f"{_cost(row.channel_params, row.group_params, d.params)}"
        f"{_cost(row.channel_macs, row.group_macs, d.macs)}"
        f'<span class="why">{html.escape(why)}</span></summary><dl>{body}</dl></details>'
    )


def _cost(channel: int, group: int, total: int) -> str:
    share = 100 * group / total if total else 0.0
    return (
        f'<span class="num">{channel:,}</span>'
        f'<span class="num bar" style="--share:{share:.2f}%" title="{group:,}: {share:.2f} % of '
        f'the network">{group:,}</span>'
    )


def _layers(parts: Iterable[Part | str]) -> str:
    return "".join(f"<code>{html.escape(str(part))}</code>" for part in parts)


def _links(names: Iterable[str]) -> str:
    return "".join(f'<a href="#">{html.escape(name)}</a>' for name in names)
