#!/usr/bin/env bash
# DVC 3.67.1 (PyPI): a key that stands in `vars` of dvc.yaml and in params.yaml is merged if both are mappings, so an
# empty mapping in `vars` serves as a default. With a list, a number or an empty key in params.yaml the same line
# is an error, "cannot redefine", so there is no default for those.
# Output seen: "absent: 0 stages, mapping: 1 stage, empty: cannot redefine, list: cannot redefine".
# Exits non-zero if that changes.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install dvc==3.67.1 pathspec==0.12.1 && export PATH="$work/v/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir p && cd p && git init -q && dvc init -q
cat > dvc.yaml <<'Y'
vars: [{runs: {}, sizes: []}]
stages:
  train: {foreach: "${runs}", do: {cmd: "echo ${key}"}}
Y
stages() { printf "$1" > params.yaml; dvc stage list 2>&1 || true; }
absent=$(stages 'seed: 1\n' | grep -c 'train@' || true) mapping=$(stages 'runs: {a: 1}\n' | grep -c 'train@')
empty=$(stages 'runs:\n' | grep -o 'cannot redefine') list=$(stages 'sizes: [1]\n' | grep -o 'cannot redefine')
echo "absent: $absent stages, mapping: $mapping stage, empty: $empty, list: $list"
test "$absent $mapping" = "0 1"
