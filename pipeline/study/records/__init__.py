"""What was found: records, artefacts, and what follows from them."""
