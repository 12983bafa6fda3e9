#!/usr/bin/env bash
# torch 2.15.0, CPU, two threads (PyPI): `torch.set_flush_denormal(True)` sets the thread that calls it and those that
# start later. Threads of the pool that have worked before keep their mode, so one elementwise product gives zeros in
# one half and 1e-40 in the other. Called before the first parallel operation it reaches all of them.
# Output seen: "set before the pool: 4000000 zeros of 4000000" and "set after it: 2000000 zeros of 4000000".
# Exits non-zero if both are the same.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install torch==2.15.0
cat > flush.py <<'P'
import sys
import torch
torch.set_num_threads(2)
if sys.argv[1] == "before":
    torch.set_flush_denormal(True)
numbers = torch.full((4_000_000,), 1e-20)  # the first parallel operation
torch.set_flush_denormal(True)
print(int((numbers * numbers == 0).sum()))
P
before=$(v/bin/python flush.py before 2>/dev/null) after=$(v/bin/python flush.py after 2>/dev/null)
echo "set before the pool: $before zeros of 4000000"
echo "set after it: $after zeros of 4000000"
[ "$before" -ne "$after" ]
