"""What a dataset's page concludes, in at most three sentences: worse than a constant image, which is better, the cost.

Each is there only where the numbers allow it.
"""

from collections.abc import Sequence
from math import isnan

import numpy as np

from elbolab.evaluation.metrics import LOG_PX, LOG_PX_CONSTANT, TEST
from elbolab.report.blocks import Conclusion, state
from elbolab.report.collect import Comparison, Entry, Row
from elbolab.report.select import EXACT
from elbolab.report.sentences import Sentence
from elbolab.report.training_cost import seconds_by_epoch, steps_by_epoch
from elbolab.support.number_formats import between, dagger, measured, number


def conclusion_blocks(comparison: Comparison) -> list[Conclusion]:
    """Return the conclusion, nothing where no number allows one."""
    entries = [entry for entry in comparison.latents if entry.evaluated]
    found = [worse_than_constant(entries), better(comparison, entries), cost(comparison, entries)]
    said = [sentence for sentence in found if sentence]
    return [Conclusion(said)] if said else []


def worse_than_constant(entries: Sequence[Entry]) -> Sentence | None:
    """Name the models whose mean test log p(x) is below the constant image's by more than errors and bias."""
    parts, runs = [], []
    for entry in entries:
        mean, error = entry.measures(LOG_PX, TEST).values()
        flat = entry.metric(LOG_PX_CONSTANT, TEST)
        if mean + sum(slack for slack in (2 * error, entry.most_bias) if not isnan(slack)) < flat:
            doubtful = entry.unreliable(TEST)
            verdict = "not shown to be better" if doubtful else "worse"
            nats = f"{dagger(measured(mean, error), doubtful)} nats of test log p(x), against {number(flat)}"
            marked = f"{entry.label}{'' if entry.converged else f', {state(entry)},'}"
            parts.append(f"{marked} is {verdict} than a constant image ({nats})")
            runs.append(entry.run.id)
    return Sentence(f"{'; '.join(parts)}.", tuple(runs)) if parts else None


def better(comparison: Comparison, entries: Sequence[Entry]) -> Sentence | None:
    """Say which of the converged models is best, by how much, and whether that survives the bias of the estimates."""
    if len(entries) < 2:
        return None
    ranked = [entry for entry in entries if entry.converged]
    if len(ranked) < 2:
        text = f"{ranked[0].label if ranked else 'None'} of these models is known to have converged"
        return Sentence(f"{'Only ' if ranked else ''}{text}, so none is ranked.", ())
    best = max(ranked, key=lambda entry: np.mean([run.metrics[LOG_PX.at(TEST)] for run in entry.runs]))
    leads = [(entry, lead) for entry in ranked if (lead := _lead(comparison, best, entry))]
    if not leads:
        return None
    # Over whom it is least sure: what holds of that one holds of the others.
    one, (other, row) = best, min(leads, key=lambda lead: lead[1]["low"] - np.nan_to_num(lead[0].most_bias))
    if row["mean"] < 0:
        one, other, row = other, best, _turned(row)
    seeds = f" and {row['seeds']} seeds" if row["seeds"] else ""
    interval = f"95% interval {between(row['low'], row['high'])}, over {row['images']} images{seeds}"
    doubtful = one.unreliable(TEST) or other.unreliable(TEST)
    nats = dagger(number(row["mean"], error=(row["high"] - row["low"]) / 2), doubtful)
    if row["low"] > 0:
        of = f"Of the {len(ranked)} models that have converged, " if len(ranked) > 2 else ""
        text = f"{of}{one.label} explains test images best, {nats} nats of log p(x) above {other.label} ({interval})"
        text += "; " + _verdict(row["low"], other, doubtful)
    else:
        text = f"Test log p(x) does not tell {one.label} and {other.label} apart: "
        text += f"{one.label} is {nats} nats above {other.label} ({interval})"
        rest = [entry for entry in ranked if entry not in (one, other)]
        behind = [entry.label for entry in rest if all(_surely_above(comparison, top, entry) for top in (one, other))]
        text += f". Both are above {' and '.join(behind)}" if behind else ""
    return Sentence(f"{text}.", (one.run.id, other.run.id))


def _lead(comparison: Comparison, one: Entry, other: Entry) -> Row | None:
    """The row of two models' difference on test images, as the first less the second; None where there is none."""
    for row in [row for row in comparison.tables["pairs"] if row["split"] == TEST]:
        if (row["model"], row["other"]) == (one.label, other.label):
            return row
        if (row["other"], row["model"]) == (one.label, other.label):
            return _turned(row)
    return None


def _surely_above(comparison: Comparison, one: Entry, other: Entry) -> bool:
    """Whether a model's lead is larger than its interval, and than the other may be estimated too low."""
    lead = _lead(comparison, one, other)
    doubtful = one.unreliable(TEST) or other.unreliable(TEST)
    return lead is not None and not doubtful and lead["low"] > (0 if other.inference == EXACT else other.most_bias)


def _turned(row: Row) -> Row:
    return row | {"mean": -row["mean"], "low": -row["high"], "high": -row["low"]}


def _verdict(low: float, other: Entry, doubtful: bool) -> str:
    """Say whether a lead of at least ``low`` nats survives the bias of the model behind; the leader's only adds."""
    bias = other.most_bias
    if doubtful:
        return "the estimates are unreliable, so which is better stays open"
    if other.inference == EXACT:
        return f"no bias of the estimates turns this round, since log p(x) of {other.label} is exact"
    if isnan(bias):
        return f"how far the estimate of {other.label} is too low was not measured, so which is better stays open"
    nats = f"{number(bias, error=bias)} nats at most"
    return f"this is {'' if low > bias else 'not '}larger than {other.label} may be estimated too low, {nats}"


def cost(comparison: Comparison, entries: Sequence[Entry]) -> Sentence | None:
    """Say how many steps and seconds the training of each model took."""
    parts, runs, devices = [], [], set()
    for entry in entries:
        steps, seconds = (of(comparison, entry) for of in (steps_by_epoch, seconds_by_epoch))
        if epochs := steps.keys() & seconds.keys():
            last = max(epochs)
            taken = f"{seconds[last]:.2g}" if seconds[last] < 10 else f"{seconds[last]:,.0f}"
            how = "in closed form" if entry.closed_form else f"and {steps[last]:,.0f} steps"
            parts.append(f"{entry.label} {taken} s {how}")
            runs.append(entry.run.id)
            devices.add(entry.run.tags.get("device"))
    where = ", on different devices" if len(devices) > 1 else ""
    return Sentence(f"Training took {', '.join(parts)}{where}.", tuple(runs)) if parts else None
