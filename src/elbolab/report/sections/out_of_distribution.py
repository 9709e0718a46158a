"""The section of other data: whether each model tells their images from those of its own, by which score."""

from elbolab.evaluation.metrics import OOD_SCORES
from elbolab.report import plots
from elbolab.report.blocks import Block, Cell, Figures, Table, head, ref, start
from elbolab.report.collect import Comparison, Entry
from elbolab.support.number_formats import dagger, measured, number
from elbolab.support.statistics import is_unreliable


def ood_blocks(comparison: Comparison) -> list[Block]:
    """Return the AUROC of each score, and how log p(x) is distributed over own and other images."""
    rows: list[list[Cell]] = []
    for row in comparison.tables["ood"]:
        doubtful = is_unreliable(row["unreliable_share"])
        scores = []
        for score, metric in OOD_SCORES.items():
            text = measured(row[f"auroc_{score}"], row[f"auroc_{score}_se"], metric.digits)
            scores.append(dagger(text, doubtful and bool(metric.doubt)))
        means = [f"{number(row[score])}, {number(row[f'other_{score}'])}" for score in ("log_px", "regret")]
        images = f"{row['images']}, {row['other_images']}"
        rows.append([*start(comparison.runs[row["run"]][1]), row["ood"], images, *scores, *means])
    if not rows:
        return []
    caption = (
        "(a) Test images against those of other data sets: AUROC by each score ± standard error, the probability that"
        " an image of the other data is scored as less likely than one of the own, ties counted half. Below 0.5 the "
        "model finds the other data likelier, as deep generative models often do where these are simpler (Nalisnick "
        "et al. 2019). Regret: ELBO under the best posterior of an image alone less that under the model's own (Xiao "
        "et al. 2020), 0 where posteriors are exact, about 0 where they are fitted to each image. Complexity: length "
        "of the image as a PNG in nats, added to log p(x) (Serrà et al. 2020), meant for likelihoods of whole 8-bit "
        "or binary pixels. Images: how many own ones, and how many others. Mean log p(x) and mean regret, nats: of "
        "the own images, and of the others."
    )
    heads = ["Model", "Run", "Other data", "Images", *map(head, OOD_SCORES.values()), "Mean log p(x)", "Mean regret"]
    entries = [entry for entry in comparison.latents if not entry.ood.empty]
    shown = "(b) How log p(x) is distributed over own test images and those of other data, as shares of each."
    return [
        Table("other data", caption, heads, rows, left=4),
        Figures(shown, list(map(ref, entries)), [_histogram(entry) for entry in entries]),
    ]


def _histogram(entry: Entry) -> str:
    groups = {str(name) or "own": part["log_px"].to_numpy() for name, part in entry.ood.groupby("dataset", sort=False)}
    return plots.histograms(f"ood-{entry.run.id[:8]}", f"(b) {entry.label}", "log p(x) (nats)", groups)
