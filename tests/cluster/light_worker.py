"""`pipeline.runner.cluster_worker` without torch, for tests whose stages need none."""

import sys

from pipeline.runner import cluster_worker, local

if __name__ == "__main__":
    local.PRELOADED = ("click",)
    cluster_worker.serve(sys.argv[1:])
