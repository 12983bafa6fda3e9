"""The comparison page of a contest."""

from __future__ import annotations

import pandas as pd

from reports.build.candidates import AXES, Candidate, candidates, latency_axes
from reports.build.page import page
from reports.build.style import Styles
from tests.reports import contest


def made(latency: bool = False) -> str:
    runs = contest.runs(latency=latency)
    axes = (*AXES, *latency_axes(runs))
    rows = candidates(runs, pd.DataFrame(), axes)
    return page("contest", rows, axes, ["top1"], styles_of(rows))


def styles_of(rows: list[Candidate]) -> Styles:
    return Styles([], [(c.method, c.styled_as) for c in rows])
