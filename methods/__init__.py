"""One folder per pruning method; `_oto` is what one family shares."""
