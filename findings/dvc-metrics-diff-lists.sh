#!/usr/bin/env bash
# DVC 3.67.1 (PyPI; dvc/repo/metrics/show.py reads dictionaries and numbers of a metrics file, not lists): a
# metrics file whose numbers are in a list, as a curve or the points of a sweep are, is tracked and shown as
# changed by `dvc status`, yet `dvc metrics diff` and `dvc metrics show` leave these numbers out without a word.
# Output seen: diff names "best" only; "points" never appears although every point has changed.
# Exits non-zero if a number of the list is shown.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install dvc==3.67.1 pathspec==0.12.1 && export PATH="$work/v/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir p && cd p && git init -q && git config user.email t@t && git config user.name t && dvc init -q
echo 'metrics: [sweep.json]' > dvc.yaml
echo '{"best": 0.9, "points": [{"top1": 0.9}, {"top1": 0.5}]}' > sweep.json
git add -A && git commit -qm before
echo '{"best": 0.8, "points": [{"top1": 0.8}, {"top1": 0.4}]}' > sweep.json
dvc metrics diff | tee diff; dvc metrics show | tee show
grep -q best diff && ! grep -qE "points|top1" diff show
