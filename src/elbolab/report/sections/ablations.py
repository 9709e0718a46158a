"""The section of ablations: what changing one parameter of a compared model does."""

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

from elbolab.evaluation.metrics import ELBO, TEST, VAL
from elbolab.report import plots
from elbolab.report.blocks import (
    Block,
    Cell,
    Figures,
    Pictures,
    Ref,
    Table,
    difference,
    notes,
    picture_rows,
    shorts,
    state,
)
from elbolab.report.collect import Comparison, Entry, Row, Variant, value_of
from elbolab.report.plots import Series
from elbolab.report.sections.conclusion import worse_than_constant
from elbolab.report.select import FITTED
from elbolab.report.sentences import Sentence
from elbolab.support.number_formats import DASH, dagger, measured, number


def ablation_blocks(comparison: Comparison) -> list[Block]:
    """Return for each model that has ablations their curves, the best of each value in words, table and pictures."""
    blocks: list[Block] = []
    for base in comparison.latents:
        if mine := [variant for variant in comparison.variants if variant.base is base]:
            rows = [row for row in comparison.tables["ablations"] if row["model"] == base.label]
            fields = dict.fromkeys(variant.field for variant in mine)
            for field in fields:
                blocks += [*curves(comparison, base, field, mine), *notes(bests(base, field, rows))]
            blocks += [table(base, mine, rows), *notes(worse_than_constant([variant.entry for variant in mine]))]
            for field in fields:
                blocks += pictures(comparison, base, field, mine)
    return blocks


def bests(base: Entry, field: str, rows: Sequence[Row]) -> Sentence | None:
    """Say how good each value of a parameter is by the best validation ELBO."""
    own = [row for row in rows if row["field"] in ("", field) and not isnan(row["best_val_elbo"])]
    was = value_of(base, field)
    ends = [f"{number(row['best_val_elbo'])} nats with {row['value'] or was}" for row in own]
    marked = [end if row["converged"] else f"{end} (not converged)" for end, row in zip(ends, own, strict=True)]
    text = f"{base.label}: {'' if base.closed_form else 'best '}validation ELBO by {field}: {', '.join(marked)}."
    return Sentence(text, tuple(run for row in own for run in row["runs"].split())) if len(own) > 1 else None


def curves(comparison: Comparison, base: Entry, field: str, mine: list[Variant]) -> list[Figures]:
    """Return the validation ELBO by epoch for each value of one parameter, of the newest run of each.

    A closed form has none.
    """
    entries = [base, *(variant.entry for variant in mine if variant.field == field)]
    lines = [(entry, comparison.curves.get((entry.run.id, ELBO.at(VAL)))) for entry in entries]
    series = [
        Series(value_of(one, field), one.slot, list(line), list(line.values()))
        for one, line in lines
        if line and not one.closed_form
    ]
    if not series:
        return []
    title = f"{base.label}: validation ELBO by {field} (nats)"
    svg = plots.curves(f"{field}-{base.run.id[:8]}", title, series, plots.WIDE)
    keys = [Ref(f"{field} {value_of(entry, field)}", entry.run.id, entry.slot) for entry in entries]
    return [
        Figures(
            "Validation ELBO by epoch, of one run for each value; the first is the compared one.",
            keys,
            [svg],
            wide=True,
        )
    ]


def pictures(comparison: Comparison, base: Entry, field: str, mine: list[Variant]) -> list[Pictures]:
    """Return reconstructions and samples by epoch for each value of one parameter, beside those of the compared run."""
    others = [variant.entry for variant in mine if variant.field == field and any(variant.entry.pictures.values())]
    entries = [replace(entry, label=f"{field} {value_of(entry, field)}") for entry in (base, *others)] if others else []
    what = {
        "reconstructions_val": "the same validation images at each epoch, originals above, reconstructions below",
        "samples": "samples decoded from the prior",
    }
    rows = (picture_rows(comparison, entries, key, f"{base.label} by {field}: {text}.") for key, text in what.items())
    return [block for blocks in rows for block in blocks]


def table(base: Entry, mine: list[Variant], found: Sequence[Row]) -> Table:
    """Return the table of a model's ablations."""
    rows: list[list[Cell]] = []
    for row, entry in zip(found, [base, *(variant.entry for variant in mine)], strict=True):
        change = [row["field"], row["value"], row["base"]] if entry is not base else ["as compared", DASH, DASH]
        best, at = number(row["best_val_elbo"]), row["best_epochs"].replace(" ", ", ")
        elbos = [f"{best} at {at}" if at else best, number(row["last_val_elbo"])]
        doubtful = entry.unreliable(TEST)
        test = dagger(measured(row["test_log_px"], row["test_log_px_se"]), doubtful)
        doubtful = doubtful or base.unreliable(TEST)
        gap = difference(row, doubtful, state(base, entry)) if "mean" in row else [DASH] * 2
        rows.append([*change, shorts(entry), str(row["seeds"]), *elbos, test, *gap])
    head = ["Parameter", "Value", "Compared", "Runs", "Seeds", "Best ELBO", "Last ELBO"]
    head += ["Test log p(x)", "Difference", "95% interval"]
    caption = (
        f"{base.label}: runs that differ from the compared one in one parameter, or in that and in the epochs that "
        "they were given; nats, means over seeds. ELBO on validation images, the best at the epoch of each seed; test "
        "log p(x) ± standard error; difference to the compared one on the same images, with its 95% interval, where "
        "both have converged."
    )
    if base.inference == FITTED:
        caption += (
            " The ELBO is that of the rows of the training, which lag behind where it has not converged: far below "
            "log p(x), which fits the posteriors of test images anew."
        )
    return Table(f"ablations {base.label}", caption, head, rows, left=4)
