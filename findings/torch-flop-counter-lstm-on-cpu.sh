#!/usr/bin/env bash
# torch 2.15.0, CPU (PyPI): `torch.utils.flop_counter.FlopCounterMode` gives an `nn.LSTM` 0 FLOPs on a CPU, with and
# without gradients, and the right number on the meta device: on a CPU the whole layer is one fused operator without a
# formula (mkldnn_rnn_layer), on meta every time step is 15 operators. `nn.GRU` has no such operator and counts right.
# Output seen: "LSTM on cpu: 0, on meta: 10240, by hand: 10240" and "GRU on cpu: 7680, on meta: 7680, by hand: 7680".
# Exits non-zero if an LSTM counts the same on both devices.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install torch==2.15.0
cat > count.py <<'P'
import torch
from torch.utils.flop_counter import FlopCounterMode

STEPS, WIDTH = 10, 8
for kind, gates in ((torch.nn.LSTM, 4), (torch.nn.GRU, 3)):
    found = []
    for device in ("cpu", "meta"):
        layer = kind(WIDTH, WIDTH, device=device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            layer(torch.zeros(STEPS, 1, WIDTH, device=device))
        found.append(counter.get_total_flops())
    by_hand = STEPS * gates * WIDTH * (WIDTH + WIDTH) * 2
    print(f"{kind.__name__} on cpu: {found[0]}, on meta: {found[1]}, by hand: {by_hand}")
P
v/bin/python count.py 2>/dev/null | tee seen
grep -q "LSTM on cpu: 0, on meta: 10240" seen
