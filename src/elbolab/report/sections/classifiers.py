"""The section of classifiers: their curves, accuracies and confusions."""

from itertools import product

from elbolab.evaluation.metrics import ACCURACY, LOSS
from elbolab.report import sentences
from elbolab.report.blocks import Block, Cell, Table, curve_blocks, head, heat, notes, start
from elbolab.report.collect import SPLITS, Comparison
from elbolab.report.tables import ACCURACY_SE
from elbolab.support.number_formats import DASH, percent


def classifier_blocks(comparison: Comparison) -> list[Block]:
    """Return what trainings and evaluations left of them."""
    entries = comparison.classifiers
    rows: list[list[Cell]] = []
    for entry, split in product(entries, SPLITS):
        if row := comparison.summary(entry, split):
            rate = percent(row[ACCURACY.name], row[ACCURACY_SE])
            rows.append([*start(entry), SPLITS[split], str(row["images"] or DASH), rate])
    heads = ["Model", "Run", "Split", "Images", head(ACCURACY)]
    return [
        *curve_blocks(comparison, entries, (LOSS, ACCURACY)),
        *(
            [
                Table(
                    "accuracy",
                    "Share of images that the classifier gives their true class ± binomial standard error.",
                    heads,
                    rows,
                    left=3,
                )
            ]
            if rows
            else []
        ),
        *heat(comparison, entries, "Confusion on validation and on test images.", "true", "predicted"),
        *notes(*map(sentences.confusion, entries)),
    ]
