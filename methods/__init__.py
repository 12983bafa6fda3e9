"""One folder per pruning method; `_oto` holds the code that the OTO family shares."""
