"""Units that are more than channels: experts, branches."""
