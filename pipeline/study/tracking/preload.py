"""Import MLflow and its local store in the server that stages are forked from, once instead of in
every training. The store itself is opened by each stage. Does nothing where tracking is off or
MLflow is not installed.
"""

from __future__ import annotations

import contextlib
import os

from pipeline.study.tracking.store import load_libraries

if os.environ.get("ESPALIER_MLFLOW", "") != "off":
    with contextlib.suppress(ImportError):
        load_libraries()
