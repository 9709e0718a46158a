"""The jobs of the suite: train a model, resume it, evaluate its run, and do all of it."""
