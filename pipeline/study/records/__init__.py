"""Results: records, artefacts, and numbers computed from them."""
