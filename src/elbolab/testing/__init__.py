"""The tests that every model, dataset and evaluator must pass, for pytest: a package of your own joins by a class."""

import pytest

# A failure then shows the values, as in a test of one's own.
pytest.register_assert_rewrite(*(f"elbolab.testing.{part}" for part in ("models", "datasets", "evaluators")))
