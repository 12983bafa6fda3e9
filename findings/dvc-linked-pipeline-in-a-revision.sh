#!/usr/bin/env bash
# DVC 3.67.1 (PyPI) follows a symbolic link to dvc.yaml in the workspace but reads it as a text file in a
# revision, where its content is the path. It warns that the file failed validation there and then drops
# the parameters of every other file of that revision, too: `dvc params diff` reports all parameters of the
# repository as new, without any edit.
# Output seen: "without the link: 0", "with the link: 2" (both with HEAD "-").
# Exits non-zero if the link makes no difference.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install dvc==3.67.1 pathspec==0.12.1 && export PATH="$work/v/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir p && cd p && git init -q && git config user.email t@t && git config user.name t && dvc init -q
mkdir plain linked
for d in plain linked; do echo "lr: 1" > $d/settings.yaml; done
cat > plain/dvc.yaml <<'Y'
stages:
  train:
    cmd: "true"
    params: [settings.yaml: [lr]]
Y
git add -A && git commit -qm plain
before=$(dvc params diff | grep -c settings || true)
ln -s ../plain/dvc.yaml linked/dvc.yaml
git add -A && git commit -qm linked
after=$(dvc params diff | grep -c settings || true)
echo "without the link: $before"; echo "with the link: $after"
[ "$before" = 0 ] && [ "$after" = 2 ]
