"""The tests that every model, dataset and evaluator must pass, for a package of your own to run on its own."""
