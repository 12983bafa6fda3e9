"""Words of error messages: one bounded line, the names that are known, the one that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 800  # characters of a line: half a terminal of 80 x 24
MOST = 24  # names listed
WIDEST = 48  # characters of a name


def suggestion(asked: object, known: Iterable[object]) -> str:
    """`did you mean 'train'? (known: data, train)`, without the question where nothing is close."""
    names = sorted({shortened(str(name)) for name in known})
    close = get_close_matches(shortened(str(asked)), names, 1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{meant}(known: {', '.join(names[:MOST]) or 'none'}{more})"


def shortened(text: str, widest: int = WIDEST) -> str:
    """At most `widest` characters of `text`."""
    return text if len(text) <= widest else f"{text[: widest - 3]}..."


def one_line(text: str, longest: int = LONGEST) -> str:
    """`text` on one line of printable characters, its middle cut out where it is too long."""
    words = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in words)
    if len(line) <= longest:
        return line
    half = (longest - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"
