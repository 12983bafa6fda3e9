#!/usr/bin/env bash
# DVC 3.67.1 (PyPI): a key of a `foreach` dictionary that YAML reads as an integer makes no stage. It is not
# listed and not run, without an error or a warning; its siblings are.
# Output seen: "listed: run@a", "ran: a".
# Exits non-zero if the stage of the integer key is listed, or refused.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install dvc==3.67.1 pathspec==0.12.1 && export PATH="$work/v/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir p && cd p && git init -q && dvc init -q
cat > params.yaml <<'Y'
rows:
  1: {x: 5}
  a: {x: 6}
Y
cat > dvc.yaml <<'Y'
stages:
  run:
    foreach: ${rows}
    do:
      cmd: echo ${item.x} > out-${key}
      outs:
        - out-${key}
Y
listed=$(dvc stage list --name-only | sort | tr '\n' ' '); echo "listed: $listed"
dvc repro 2>&1 | tail -1
ran=$(ls | sed -n 's/^out-//p' | tr '\n' ' '); echo "ran: $ran"
[ "$listed" = "run@a " ] && [ "$ran" = "a " ]
