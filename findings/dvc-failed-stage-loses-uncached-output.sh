#!/usr/bin/env bash
# DVC 3.67.1 (PyPI): before a changed stage runs, `dvc repro` deletes its outputs, also those with `cache: false`
# (metrics as a rule) that are neither in DVC's cache nor in a commit. If the command then fails at once, the result
# of the last good run exists nowhere, while dvc.lock still lists its hash. `persist: true` keeps the file.
# Output seen: "after a failed run: m.json is gone, cache holds 0 files, kept.json is here".
# Exits non-zero if that changes.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install dvc==3.67.1 pathspec==0.12.1 && export PATH="$work/v/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir p && cd p && git init -q && dvc init -q
cat > dvc.yaml <<'Y'
stages:
  train:
    cmd: test "$(cat limit)" = 1 && echo '{"top1":99}' | tee m.json > kept.json
    deps: [limit]
    metrics: [{m.json: {cache: false}}]
    outs: [{kept.json: {cache: false, persist: true}}]
Y
echo 1 > limit && dvc repro -q && test -f m.json && test -f kept.json
echo 2 > limit
if dvc repro -q 2> /dev/null; then exit 1; fi
held=$(find .dvc -path '*/cache/*' -type f | wc -l)
test ! -e m.json && test -f kept.json && test "$held" = 0 && grep -q 'path: m.json' dvc.lock
echo "after a failed run: m.json is gone, cache holds $held files, kept.json is here"
