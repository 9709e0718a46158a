"""The evaluators by name: each takes a trained model on its data and gives metrics and files."""

from collections.abc import Callable

from elbolab.evaluators.classes import classes
from elbolab.evaluators.fidelity import fidelity
from elbolab.evaluators.gap import gap
from elbolab.evaluators.likelihood import likelihood
from elbolab.evaluators.representation import representation
from elbolab.evaluators.subject import Findings, Subject

EVALUATORS: dict[str, Callable[[Subject], Findings]] = {
    "likelihood": likelihood,
    "classes": classes,
    "representation": representation,
    "fidelity": fidelity,
    "gap": gap,
}

__all__ = ["EVALUATORS", "Findings", "Subject"]
