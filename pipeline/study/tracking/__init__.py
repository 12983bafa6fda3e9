"""Tracking in MLflow: events, live mirror, runs and saved views."""
