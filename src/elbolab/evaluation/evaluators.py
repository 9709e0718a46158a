"""The evaluators by name: each takes a trained model on its data and gives metrics and files."""

from collections.abc import Callable

from elbolab.evaluation.base import Evaluation, Results
from elbolab.evaluation.class_preservation import classes
from elbolab.evaluation.inference_gap import gap
from elbolab.evaluation.likelihood import likelihood
from elbolab.evaluation.representation import representation
from elbolab.evaluation.sample_quality import fidelity

EVALUATORS: dict[str, Callable[[Evaluation], Results]] = {
    "likelihood": likelihood,
    "classes": classes,
    "representation": representation,
    "fidelity": fidelity,
    "gap": gap,
}
