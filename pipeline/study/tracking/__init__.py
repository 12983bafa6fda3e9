"""How MLflow learns of a study: events, live mirror, runs and saved views."""
