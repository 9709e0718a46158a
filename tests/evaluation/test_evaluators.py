"""Conformance: what every evaluator of EVALUATORS must do. A new one joins by its line there."""

from collections.abc import Callable

import pytest

from elbolab.evaluation import EVALUATORS, Evaluation, Results
from elbolab.evaluation.metrics import find_metric
from elbolab.models.base import Model
from elbolab.testing.evaluators import EvaluatorTests
from elbolab.testing.models import digits


class TestEvaluators(EvaluatorTests):
    @pytest.fixture(params=EVALUATORS.values())
    def evaluator(self, request: pytest.FixtureRequest) -> Callable[[Evaluation], Results]:
        return request.param

    def test_its_keys_are_declared(self, evaluator: Callable[[Evaluation], Results], model: Model):
        found = self.results(evaluator, model, digits(40, 20)).metrics
        assert [key for key in found if find_metric(key) is None] == []
