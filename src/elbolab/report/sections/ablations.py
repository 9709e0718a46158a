"""The section of ablations: what changing one parameter of a compared model does."""

from typing import Any

from elbolab.report import plots
from elbolab.report.blocks import Cell, Figures, Missing, Notes, Ref, Table, shorts
from elbolab.report.collect import Comparison, Entry, Sentence, Variant, public
from elbolab.report.plots import Series
from elbolab.support.number_formats import DASH, between, dagger, measured, number

START = "latent_init"
STARTS = ("zeros", "normal", "pca")


def ablation_blocks(comparison: Comparison) -> list[Any]:
    """Return for each model that has ablations their curves, but those of its initialisation, and their table."""
    blocks: list[Any] = []
    for base in comparison.latents:
        if mine := [variant for variant in comparison.variants if variant.base is base]:
            fields = dict.fromkeys(variant.field for variant in mine if variant.field != START)
            blocks += [figure for name in fields if (figure := curves(comparison, base, name, mine))]
            blocks.append(table(comparison, base, mine))
    return blocks


def initialisation_blocks(comparison: Comparison, base: Entry) -> list[Any]:
    """Return the effect of where a model's rows start: its curves, a sentence, and which starts are lacking."""
    if START not in base.run.params:
        return []
    blocks: list[Any] = []
    mine = [variant for variant in comparison.variants if variant.base is base and variant.field == START]
    if mine and (figure := curves(comparison, base, START, mine)):
        found = [row for row in comparison.tables["ablations"] if row["model"] == base.label]
        rows = [row for row in found if row["field"] in ("", START)]
        ends = [f"{number(row['best_val_elbo'])} nats from {row['value'] or base.run.params[START]}" for row in rows]
        runs = tuple(run for row in rows for run in row["runs"].split())
        blocks += [figure, Notes([Sentence(f"{base.label}: best validation ELBO {', '.join(ends)}.", runs)])]
    done = {base.run.params[START], *(variant.value for variant in mine)}
    lacking = [name for name in STARTS if name not in done]
    blocks += [Missing(f"No finished run changes only {START} to {name}.", again(base, name)) for name in lacking]
    return blocks


def curves(comparison: Comparison, base: Entry, field: str, mine: list[Variant]) -> Figures | None:
    """Return the validation ELBO by epoch for each value of one parameter, of the newest run of each."""
    values = [(public(base.run.params.get(field, "unset")), base)]
    values += [(variant.value, variant.entry) for variant in mine if variant.field == field]
    lines = [(name, entry, comparison.curves.get((entry.run.id, "val/elbo"))) for name, entry in values]
    series = [Series(name, entry.slot, list(line), list(line.values())) for name, entry, line in lines if line]
    if not series:
        return None
    title = f"{base.label}: validation ELBO by {field}"
    svg = plots.curves(f"{field}-{base.run.id[:8]}", title, "nats", series, plots.WIDE)
    keys = [Ref(f"{field} {name}", entry.run.id, entry.slot) for name, entry in values]
    return Figures("One run for each value; the first is the compared one.", keys, [svg], wide=True)


def table(comparison: Comparison, base: Entry, mine: list[Variant]) -> Table:
    """Return the table of a model's ablations."""
    found = (row for row in comparison.tables["ablations"] if row["model"] == base.label)
    rows: list[list[Cell]] = []
    for row, entry in zip(found, [base, *(variant.entry for variant in mine)], strict=True):
        change = [row["field"], row["value"], row["base"]] if entry is not base else ["as compared", DASH, DASH]
        best, at = number(row["best_val_elbo"]), row["best_epochs"].replace(" ", ", ")
        elbos = [f"{best} at {at}" if at else DASH, number(row["last_val_elbo"])]
        doubtful = entry.unreliable("test")
        test = dagger(measured(row["test_log_px"], row["test_log_px_se"]), doubtful)
        doubtful = doubtful or base.unreliable("test")
        gap = (
            [dagger(number(row["mean"]), doubtful), between(row["low"], row["high"])] if "mean" in row else [DASH, DASH]
        )
        rows.append([*change, shorts(entry), str(row["seeds"]), *elbos, test, *gap])
    head = ["Parameter", "Value", "Compared", "Runs", "Seeds", "Best ELBO", "Last ELBO"]
    head += ["Test log p(x)", "Difference", "95% interval"]
    caption = (
        f"{base.label}: runs that differ from the compared one in one parameter; nats, means over seeds. ELBO on "
        "validation images, the best at the epoch of each seed; test log p(x) ± standard error over images; difference "
        "to the compared one on the same images, with its 95% bootstrap interval."
    )
    return Table(f"ablations {base.label}", caption, head, rows, left=4)


def again(base: Entry, start: str) -> str:
    """Return the command that trains a run that differs from the compared one in its initialisation."""
    given = {key: public(value) for key, value in base.run.params.items() if key not in ("model", "data_dir", "device")}
    flags = sorted((given | {START: start}).items())
    return f"elbolab {base.model}" + "".join(f" --{key.replace('_', '-')} {value}" for key, value in flags)
