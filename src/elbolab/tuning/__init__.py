"""Studies: searches by Optuna and reproductions of published numbers, tracked in MLflow."""
