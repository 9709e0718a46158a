"""Trained models as MLflow models: packaged, served, and registered as versions."""
