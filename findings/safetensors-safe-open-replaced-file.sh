#!/usr/bin/env bash
# safetensors 0.8.0 (PyPI; safe_open, framework="pt") opens a file twice by name: once for the header, once
# through torch for the tensors. Where another process replaces the file by os.replace, each version being
# complete, a reader sometimes gets the metadata of one version with the tensors of the next, without an error.
# Output seen: "reading 1: metadata of step 0, tensor of step 2" (numbers vary; 106 of 20,000 in a longer run).
# Exits non-zero if no reading of 200,000 is mixed.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install safetensors==0.8.0 torch==2.15.0 numpy
cat > mixed.py <<'P'
import os
from multiprocessing import Process

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def write(step):
    save_file({"step": torch.full((8,), float(step))}, "next", metadata={"step": str(step)})
    os.replace("next", "last")


def writer():
    step = 0
    while True:
        step += 1
        write(step)


if __name__ == "__main__":
    write(0)
    process = Process(target=writer, daemon=True)
    process.start()
    for reading in range(1, 200_001):
        with safe_open("last", framework="pt") as f:
            header, tensor = int(f.metadata()["step"]), int(f.get_tensor("step")[0])
        if header != tensor:
            break
    process.terminate()
    print(f"reading {reading}: metadata of step {header}, tensor of step {tensor}")
    raise SystemExit(header == tensor)
P
v/bin/python mixed.py
