"""Tables and figures of a study, built from MLflow runs only."""
