"""Every path of a study, one function each. All are relative to the folder of params.yaml."""

from __future__ import annotations

from pathlib import Path

CODE = Path(__file__).resolve().parents[2]  # of this process: the folder of `pipeline`
PARAMS = Path("params.yaml")
CHECKED = Path("artifacts/check.txt")
PREPARED = Path("data/prepared")
CARD = PREPARED / "card.json"
TABLES = Path("reports/tables")
RECORDS = Path("reports/records")
DATA_RECORD = RECORDS / "data.json"


def training(key: str) -> Path:
    """Artefact of a training: spec.json and one folder per named state."""
    return Path("artifacts/train") / key


def prune(key: str) -> Path:
    """Artefact of a pruning before retraining: spec.json, plan, weights."""
    return Path("artifacts/prune") / key


def finetune(key: str) -> Path:
    """Artefact of a pruning after retraining: what is delivered."""
    return Path("artifacts/finetune") / key


def checkpoints(stage: str, key: str) -> Path:
    """Checkpoints of a running stage; outside every DVC output, removed when it ends well."""
    return Path(".checkpoints") / stage / key


def events(stage: str, key: str) -> Path:
    """Event file of one stage instance: every metric with its time. No stage depends on it."""
    return Path("artifacts/events") / stage / f"{key}.jsonl"


def record(kind: str, key: str) -> Path:
    """Deterministic record, tracked by git. Kinds: train, evaluate, sweep, connect."""
    return RECORDS / kind / f"{key}.json"
