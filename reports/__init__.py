"""Results of the study at hand, and the code that builds them (reports/build)."""
