"""What a forward need not run: it would tell what another has told."""
