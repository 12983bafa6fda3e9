"""What MLflow shows above the runs of a study."""

from __future__ import annotations

from urllib.parse import quote


def views_guide(experiment: str) -> str:
    """What the page of an experiment says: links to the views that answer the usual questions."""
    rows = "tags.stage = 'evaluate'"
    asked = {
        "Which method at 90 %?": f"{rows} AND metrics.`sparsity/weight` > 0.88",
        "Every row of the tables": rows,
        "One-shot sweep points": "tags.stage = 'sweep-point'",
    }
    best = "orderByKey=metrics.%60final%2Ftop1%60&orderByAsc=false&compareRunsMode=CHART"
    links = [
        f"- [{text}](#/experiments/{experiment}/runs?searchFilter={quote(where)}&{best})"
        for text, where in asked.items()
    ]
    return "\n".join([*links, "", "Then *Group by* `method`; docs/comparing.md tells more."])
