"""What a validation score cost: the curves of all models against the steps and the seconds of their trainings."""

from collections.abc import Callable

from elbolab.report import plots
from elbolab.report.blocks import Figures, ref
from elbolab.report.collect import Comparison, Entry
from elbolab.report.plots import Series
from elbolab.report.training_cost import seconds_by_epoch, steps_by_epoch
from elbolab.support.number_formats import MINUS


def cost_blocks(comparison: Comparison) -> list[Figures]:
    """Return two figures, the validation score by gradient steps and by seconds; a closed form is a level in them."""
    panels: dict[str, Callable[[Comparison, Entry], dict[int, float]]] = {
        "gradient steps": steps_by_epoch,
        "seconds": seconds_by_epoch,
    }
    svgs, drawn, figures = [], {}, []
    for label, cost_of in panels.items():
        series, levels = [], []
        for entry in comparison.latents:
            loss = {epoch: -value for epoch, value in comparison.score(entry).items()}
            if entry.closed_form and loss:
                levels.append(Series(entry.label, entry.slot, [], [], level=loss[max(loss)]))
                continue
            cost = cost_of(comparison, entry)
            if epochs := sorted(cost.keys() & loss.keys()):
                x, y = [cost[epoch] for epoch in epochs], [loss[epoch] for epoch in epochs]
                series.append(Series(entry.label, entry.slot, x, y))
        if series:
            drawn |= {one.name: one for one in (*series, *levels)}
            name = f"cost-{label.replace(' ', '-')}-{comparison.latents[0].run.id[:8]}"
            svgs.append(plots.by_cost(name, f"Validation {MINUS}ELBO (nats)", label, [*series, *levels]))
            figures.append([*series, *levels])
    if not svgs:
        return []
    caption = (
        "The validation score against what it cost, on a logarithmic axis: minus the ELBO at beta = 1, or minus its "
        f"own bound for a model that is judged by one.{plots.cut_note(figures)} Seconds compare on one "
        "device alone, and only of trainings that had as much of it: those of main run beside each other."
    )
    closed = " Dotted: a closed form." if any(line.level is not None for line in drawn.values()) else ""
    return [Figures(caption + closed, [ref(entry) for entry in comparison.latents if entry.label in drawn], svgs)]
