"""SQuAD v1.1: questions read, checked, cut into windows of tokens, and batched."""
