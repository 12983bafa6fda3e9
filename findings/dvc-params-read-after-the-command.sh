#!/usr/bin/env bash
# DVC 3.67.1 (PyPI; dvc/stage/__init__.py, Stage.save, called after the command) hashes the parameters of
# a stage when its command has ended, not when it began. A value edited while the stage runs is written
# into dvc.lock and the run cache as if the result had been made with it; `dvc status` is then silent.
# Output seen: "used: 1", "locked: 2", "Data and pipelines are up to date."
# Exits non-zero if DVC records the value that was used, or notices.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install dvc==3.67.1 pathspec==0.12.1 && export PATH="$work/v/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir p && cd p && git init -q && dvc init -q
echo "lr: 1" > params.yaml
cat > dvc.yaml <<'Y'
stages:
  train:
    cmd: grep -o '[0-9]' params.yaml > used; sleep 4
    params: [lr]
    outs: [used]
Y
(until [ -s used ]; do sleep .1; done; echo "lr: 2" > params.yaml) &
dvc repro -q; wait
used=$(cat used); locked=$(grep -A1 'params.yaml:' dvc.lock | grep -o '[0-9]*$')
echo "used: $used"; echo "locked: $locked"; status=$(dvc status); echo "$status"
[ "$used" = 1 ] && [ "$locked" = 2 ] && grep -q "up to date" <<< "$status"
