"""Which units are removed first: saliency, masks, budgets."""
