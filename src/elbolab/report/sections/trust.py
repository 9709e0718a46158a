"""The section of trust in the likelihoods: importance weights, the bound by its samples, and the inference gap."""

from collections import Counter
from collections.abc import Sequence
from math import isnan
from statistics import median

from elbolab.evaluation import metrics as m
from elbolab.report import plots
from elbolab.report.blocks import Block, Cell, Figures, Table, head, notes, ref, shown, start
from elbolab.report.collect import SPLITS, Comparison, Entry
from elbolab.report.plots import Series
from elbolab.report.sentences import Sentence
from elbolab.support.number_formats import DASH, dagger, measured, number, percent

# The larger of annealed and plain importance sampling stands for both.
GAP = {column: metric for column, metric in m.GAP_COLUMNS.items() if metric is not m.LOG_PX_AIS}


def trust_blocks(comparison: Comparison) -> list[Block]:
    """Return what the evaluations left of it."""
    return [*weight_blocks(comparison), *bound_blocks(comparison), *gap_blocks(comparison)]


def weight_blocks(comparison: Comparison) -> list[Table]:
    """Return how sure the estimates of each run are, by posterior and split, and what they are too low at most."""
    rows: list[list[Cell]] = []
    for row in comparison.tables["summary"]:
        if row["split"] not in (m.TEST, m.TRAIN) or "unreliable_share" not in row:
            continue
        entry = comparison.runs[row["run"]][1]
        error = median(entry.images(row["split"], "std_err", row["posterior"]).values())
        doubt = dagger(percent(row["unreliable_share"]), row["unreliable"])
        bias = shown(m.BIAS, entry.measures(m.BIAS, m.SIMULATED)) if row["split"] == m.TEST else DASH
        how = rungs(entry, row["split"], row["posterior"])
        k = number(row.get(m.PARETO_K.name))
        rows.append([*start(entry), row["posterior"], SPLITS[row["split"]], how, number(error), doubt, k, bias])
    heads = ["Model", "Run", "Posterior", "Split", "Estimated by", "Error of an image", "Unreliable", "Pareto k"]
    caption = (
        "(a) How sure log p(x) is, nats. Estimated by: of how many images by importance sampling, and of how many by "
        "annealing with so many distributions. Error of an image: the median over images. Unreliable: the share of "
        "images whose estimate misses the tolerance. Pareto k: how heavy the tail of an image's importance weights is, "
        "the median over the images that have one. Bias: on images that the model makes, an upper bound of log p(x) "
        "less the estimate (Grosse et al. 2015). Exact likelihoods are not here."
    )
    return [Table("weights", caption, [*heads, m.BIAS.label], rows, left=5)] if rows else []


def rungs(entry: Entry, split: str, posterior: str) -> str:
    """Write how many images were estimated how."""
    found = sorted(Counter(int(rung) for rung in entry.images(split, "rung", posterior).values()).items())
    if not found:
        return f"importance, {entry.samples} samples"
    return ", ".join(f"{count} {'importance' if rung == 1 else f'annealed {rung}'}" for rung, count in found)


def bound_blocks(comparison: Comparison) -> list[Figures]:
    """Return the figure of the mean bound on test images by its number of samples."""
    entries, series = [], []
    for entry in [entry for entry in comparison.latents if not entry.bounds.empty]:
        found = entry.bounds.query("split == @m.TEST and posterior == @entry.inference").sort_values("samples")
        if len(found):
            entries.append(entry)
            x, y, error = (found[name].tolist() for name in ("samples", "log_px", "log_px_se"))
            series.append(Series(entry.label, entry.slot, x, y, error))
    if not series:
        return []
    title = "(b) Mean bound on test log p(x) (nats)"
    svg = plots.by_samples(f"bounds-{entries[0].run.id[:8]}", title, series)
    caption = (
        "The importance-weighted bound from the model's own posterior by its number of samples, for the evaluated "
        "images: at one their ELBO, with more of them up towards log p(x). Where log p(x) is estimated otherwise, this "
        "shows what the posterior alone would give. Bars: one standard error over images."
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
        "(c) Inference gap, nats, means over the split ± standard error. log p(x): the estimate that is quoted, or "
        "exact; where it is annealed from the prior too, the larger of the two. L[q]: ELBO of the model's q. L[q*]: "
        "ELBO of the best posterior of the model's own family that a search finds for the image. The approximation gap "
        "is log p(x) less L[q*], the amortization gap L[q*] less L[q], their sum the inference gap (Cremer et al. "
        "2018). A search that stops short makes the first too large and the second too small."
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
        "How the gaps were measured: annealed importance sampling of log p(x), the search for q*, and how many of the "
        "moves on test images were accepted: they are steered to 65 %, and far below it the estimate is too low."
    )
    names = ["Model", "Run", "Annealed importance sampling", "Search", head(m.AIS_ACCEPTANCE)]
    return [
        Table("inference gap", caption, heads, rows, left=4),
        *notes(*map(tightness, entries)),
        *family_blocks(entries),
        Table("gap protocol", how, names, protocols, left=4),
    ]


def family_blocks(entries: Sequence[Entry]) -> list[Table]:
    """Return the approximation gap that is left in each family of posteriors, where it was searched in all."""
    prefix = m.APPROXIMATION_GAP_OF.name.partition("{")[0]
    gaps: dict[str, list[float]] = {}
    for key, value in ((key, value) for entry in entries for key, value in entry.run.metrics.items()):
        name = key.partition("/")[2]
        if name.startswith(prefix) and not name.endswith("_se"):
            gaps.setdefault(name.removeprefix(prefix), []).append(value)
    # From the widest gap to the narrowest.
    families = sorted(gaps, key=lambda family: -sum(gaps[family]) / len(gaps[family]))
    rows: list[list[Cell]] = []
    for entry in entries:
        for split in m.GAP:
            row = [entry.measures(m.APPROXIMATION_GAP_OF, split, FAMILY=family) for family in families]
            if not all(isnan(one[m.APPROXIMATION_GAP_OF.name]) for one in row):
                rows.append([*start(entry), SPLITS[split], *(shown(m.APPROXIMATION_GAP_OF, one) for one in row)])
    caption = (
        "(d) Approximation gap of the best posterior that a search finds in each family, nats: log p(x) less its ELBO, "
        "means over the split ± standard error. The decoder is the same in a row; the model's own family is under "
        "Models."
    )
    return [Table("families", caption, ["Model", "Run", "Split", *families], rows, left=3)] if rows else []


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
