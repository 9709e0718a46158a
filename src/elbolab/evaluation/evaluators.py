"""The evaluators by name: each takes a trained model on its data and gives metrics and files."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint

from elbolab.evaluation.base import Evaluation, Results
from elbolab.evaluation.class_preservation import classes
from elbolab.evaluation.inference_gap import gap
from elbolab.evaluation.likelihood import likelihood
from elbolab.evaluation.out_of_distribution import out_of_distribution
from elbolab.evaluation.representation import representation
from elbolab.evaluation.sample_quality import fidelity
from elbolab.support.entry_points import Extensible, package
from elbolab.support.user_code import failure

Evaluator = Callable[[Evaluation], Results]


def _checked(evaluator: Evaluator, entry: EntryPoint) -> Evaluator:
    """The evaluator of another package, which must not cost an evaluation what the others have found."""

    def checked(evaluation: Evaluation) -> Results:
        try:
            found = evaluator(evaluation)
            if not isinstance(found, Results):
                raise TypeError(f"it gives a {type(found).__name__}, not elbolab.Results")
        except Exception as error:
            why = f"{failure(error)}; its figures are missing"
            print(f"elbolab: evaluator {entry.name!r} of the package {package(entry)}: {why}", file=sys.stderr)
            return Results()
        return found

    return checked


EVALUATORS: Extensible[Evaluator] = Extensible(
    "elbolab.evaluators",
    checked=_checked,
    own={
        "likelihood": likelihood,
        "classes": classes,
        "representation": representation,
        "fidelity": fidelity,
        "gap": gap,
        "out_of_distribution": out_of_distribution,
    },
)
"""Those of this package, and after them the entry points ``elbolab.evaluators`` of others."""
