"""The section of trust in the likelihoods: importance weights, the bound by its samples, and the inference gap."""

from elbolab.evaluation import metrics as m
from elbolab.report import plots
from elbolab.report.blocks import Block, Cell, Figures, Table, head, notes, ref, shown, start
from elbolab.report.collect import SPLITS, Comparison, Entry, Row
from elbolab.report.plots import Series
from elbolab.report.sentences import Sentence
from elbolab.support.number_formats import DASH, dagger, measured, number, percent
from elbolab.support.statistics import k_threshold

# The larger of annealed and plain importance sampling stands for both.
GAP = {column: metric for column, metric in m.GAP_COLUMNS.items() if metric is not m.LOG_PX_AIS}


def trust_blocks(comparison: Comparison) -> list[Block]:
    """Return what the evaluations left of it."""
    return [*weight_blocks(comparison), *bound_blocks(comparison), *gap_blocks(comparison)]


def weight_blocks(comparison: Comparison) -> list[Table]:
    """Return the Pareto k of the importance weights by run, posterior and split."""
    rows: list[list[Cell]] = []
    for (_, run, posterior), by in comparison.by_split(m.PARETO_K).items():
        entry = comparison.runs[run][1]
        ks = [k_cell(by[split]) if split in by else DASH for split in SPLITS]
        samples, effective = str(entry.samples or DASH), shown(m.ESS, by.get(m.TEST, {}))
        rows.append([*start(entry), posterior, samples, number(k_threshold(entry.samples)), *ks, effective])
    splits = [split.capitalize() for split in SPLITS.values()]
    heads = ["Model", "Run", "Posterior", "Samples", "k at most", *splits, "Test ESS"]
    caption = (
        "(a) Importance weights: median Pareto k over images, and the share of images whose k is above what the number "
        "of samples allows (Vehtari et al. 2024). Exact likelihoods have no weights. ESS: median effective sample size."
    )
    return [Table("weights", caption, heads, rows, left=3)] if rows else []


def k_cell(row: Row) -> str:
    """Write a median k, and the share of images with a k that is too high."""
    return f"{dagger(number(row[m.PARETO_K.name]), row['unreliable'])} ({percent(row['unreliable_share'])})"


def bound_blocks(comparison: Comparison) -> list[Figures]:
    """Return the figure of the mean bound on test images by its number of samples."""
    entries, series = [], []
    for entry in [entry for entry in comparison.latents if not entry.bounds.empty]:
        found = entry.bounds.query("split == @m.TEST").sort_values("samples")
        if len(found):
            entries.append(entry)
            x, y, error = (found[name].tolist() for name in ("samples", "log_px", "log_px_se"))
            series.append(Series(entry.label, entry.slot, x, y, error))
    if not series:
        return []
    title = "(b) Mean bound on test log p(x) (nats)"
    svg = plots.by_samples(f"bounds-{entries[0].run.id[:8]}", title, series)
    caption = (
        "The importance-weighted bound by its number of samples: at one the ELBO, at as many as were drawn the "
        "estimate of log p(x). A line that still rises at its end has not reached log p(x). Bars: one standard error "
        "over images."
    )
    return [Figures(caption, [ref(entry) for entry in entries], [svg], wide=True)]


def gap_blocks(comparison: Comparison) -> list[Block]:
    """Return the inference gap in its two parts, how it was measured, and how tight the measure is."""
    rows: list[list[Cell]] = []
    for row in comparison.tables["gap"]:
        numbers = [measured(row[name], row[f"{name}_se"]) for name in GAP]
        images = f"{row['images']} {SPLITS[row['split']]}"
        rows.append([*start(comparison.runs[row["run"]][1]), row["posterior"], images, *numbers])
    if not rows:
        return []
    entries = [entry for entry in comparison.latents if not entry.gaps.empty]
    caption = (
        "(c) Inference gap, nats, means over the same images ± standard error. log p(x): the larger of annealed and of "
        "plain importance sampling, or exact; L[q]: ELBO of the model's q; L[q*]: ELBO of the best posterior of the "
        "model's own family that a search finds for the image. The approximation gap is log p(x) less L[q*], the "
        "amortization gap L[q*] less L[q], their sum the inference gap (Cremer et al. 2018). A search that stops short "
        "makes the first too large and the second too small."
    )
    if fitted := [entry.label for entry in entries if entry.inference == "fitted"]:
        caption += (
            f" {' and '.join(fitted)} {'has' if len(fitted) == 1 else 'have'} no encoder: what stands under "
            "amortization gap is how far rows, fitted or the training table's own, are from q*."
        )
    heads = ["Model", "Run", "Posterior", "Images", *map(head, GAP.values())]
    protocols: list[list[Cell]] = []
    for entry in entries:
        searches = [entry.run.tags.get(f"evaluation.{name}", DASH) for name in ("ais", "local_optimisation")]
        protocols.append([*start(entry), *searches, percent(entry.metric(m.AIS_ACCEPTANCE, m.TEST))])
    how = (
        "How (c) was measured: annealed importance sampling of log p(x), the search for q*, and how many of the moves "
        "on test images were accepted: they are steered to 65 %, and far below it the estimate is too low."
    )
    names = ["Model", "Run", "Annealed importance sampling", "Search", head(m.AIS_ACCEPTANCE)]
    return [
        Table("inference gap", caption, heads, rows, left=4),
        *notes(*map(tightness, entries)),
        Table("gap protocol", how, names, protocols, left=4),
    ]


def tightness(entry: Entry) -> Sentence | None:
    """Say between which bounds bidirectional Monte Carlo puts log p(x) of images that the model itself makes."""
    if not entry.has(m.BDMC_GAP, m.SIMULATED):
        return None
    lower, upper, gap = (number(entry.metric(one, m.SIMULATED)) for one in (m.LOG_PX_LOWER, m.LOG_PX_UPPER, m.BDMC_GAP))
    text = (
        f"{entry.label}: on images that the model makes, mean log p(x) lies between {lower} and {upper} nats by "
        f"bidirectional Monte Carlo (Grosse et al. 2015): there annealed estimates are {gap} nats too low at most, in "
        "expectation."
    )
    return Sentence(text, (entry.run.id,))
