"""Pre-commit hook: refuse files above 500 kB; data and weights do not belong in git."""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT = 500_000


def main(names: list[str]) -> int:
    large = [n for n in names if Path(n).is_file() and Path(n).stat().st_size > LIMIT]
    for name in large:
        sys.stderr.write(f"{name}: {Path(name).stat().st_size} bytes, above {LIMIT}\n")
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
