#!/usr/bin/env bash
# DVC 3.67.1 with dvc-data 3.18.3, dvc-objects 5.2.0, fsspec 2026.9.0 (PyPI), one process that opens a repository
# and adds folders one after another: the listing of every folder hashed stays in fsspec's global file system in
# memory, and each look-up of a path there (`MemoryFileSystem.info`) reads all names in it. So the cost of a folder
# grows with the number of folders hashed before it; in a process of 200 stages it was a fifth of the CPU time.
# Output seen: "files in memory after 10, 20, 30 folders: 10 20 30".
# Exits non-zero if their number no longer grows in proportion.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install dvc==3.67.1 dvc-data==3.18.3 dvc-objects==5.2.0 fsspec==2026.9.0 pathspec==0.12.1 && export PATH="$work/v/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir p && cd p && git init -q && dvc init -q
python - <<'P' | tail -1
from pathlib import Path
from dvc.repo import Repo
from fsspec.implementations.memory import MemoryFileSystem
seen = []
for n in range(1, 31):
    Path(f"f{n}").mkdir()
    Path(f"f{n}/a").write_text(str(n))
    Repo().add(f"f{n}")
    if n % 10 == 0:
        seen.append(len(MemoryFileSystem.store))
print("files in memory after 10, 20, 30 folders:", *seen)
raise SystemExit(seen[1] < 2 * seen[0] or seen[2] < 3 * seen[0] or seen[0] < 10)
P
