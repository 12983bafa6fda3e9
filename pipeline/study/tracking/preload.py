"""Import MLflow and its local store in the server that stages are forked from, once instead of in
every training. The store itself is opened by each stage. Does nothing where the live view is off or
MLflow is not installed.
"""

from __future__ import annotations

import contextlib

from pipeline.study.tracking.database import sqlite_file, tracking_uri
from pipeline.study.tracking.store import load_libraries
from pipeline.study.tracking.tracker import live_view

if live_view():
    with contextlib.suppress(ImportError):
        load_libraries(local=sqlite_file(tracking_uri()) is not None)
