"""The section of latent-variable models, one or many side by side: what each is, its curves and its pictures."""

from collections.abc import Sequence

from elbolab.evaluation.metrics import ELBO, KL, MSE
from elbolab.report import sentences
from elbolab.report.blocks import Block, Cell, Ref, Table, curve_blocks, notes, picture_rows, start
from elbolab.report.collect import SPLITS, Comparison, Entry
from elbolab.report.sections.cost import cost_blocks
from elbolab.support.number_formats import DASH

MISREAD = "*"
ENDS = "best is the epoch of the highest validation score, whose weights are evaluated."


def latent_blocks(comparison: Comparison) -> list[Block]:
    """Return the models, and what their trainings left: curves, reconstructions, class changes and samples."""
    entries = comparison.latents
    best = [sentences.best(comparison, entry) for entry in entries]
    alike = len(entries) > 1 and len({entry.run.params.get("latent_dim") for entry in entries}) == 1
    noise = ": the same noise at each epoch" + (" and for every run" if alike else "")
    shown = "images at each epoch, originals above, reconstructions below"
    end = f"; {ENDS}" if any(not entry.closed_form for entry in entries) else "."
    return [
        *axes_table(entries),
        *curve_blocks(comparison, entries, (ELBO, MSE, KL), negative=ELBO),
        *notes(*best),
        *cost_blocks(comparison),
        *picture_rows(comparison, entries, "reconstructions_val", f"The same validation {shown}{end}"),
        *picture_rows(comparison, entries, "reconstructions_train", f"The same training {shown}{end}"),
        *ten_table(comparison),
        *notes(*map(sentences.class_kept, entries)),
        *picture_rows(comparison, entries, "samples", f"Samples decoded from the prior{noise}{end}"),
    ]


def axes_table(entries: Sequence[Entry]) -> list[Table]:
    """Return what the models are: where their posteriors come from, of which family, their prior and latent space."""
    # Runs of versions before a field was one do not have it.
    fields = {"posterior": "Family", "prior": "Prior", "latent_dim": "D"}
    have = [field for field in fields if any(field in entry.run.params for entry in entries)]
    rows: list[list[Cell]] = [
        [*start(entry), entry.inference or DASH, *(entry.run.params.get(field, DASH) for field in have)]
        for entry in entries
    ]
    caption = (
        "Inference: posteriors of images come from an encoder, from steps that begin there (refined) or elsewhere "
        "(fitted), or are exact. D: latent dimensions."
    )
    heads = ["Model", "Run", "Inference", *(fields[field] for field in have)]
    return [Table("models", caption, heads, rows, left=2 + len(have))] if rows else []


def ten_table(comparison: Comparison) -> list[Table]:
    """Return the true classes of the fixed images, and those that the classifier gives them and reconstructions."""
    tens = [(entry, split, ten) for entry in comparison.latents for split, ten in entry.classes.get("ten", {}).items()]
    labels = sorted({one["label"] for _, _, ten in tens for one in ten})
    rows: list[list[Cell]] = []
    for entry, split, ten in tens:
        digits = {one["label"]: _classes(comparison, **one) for one in ten}
        # A split may have no image of a class.
        cells = [digits.get(label, "") for label in labels]
        counts = [sum(one["original"] != one[other] for one in ten) for other in ("reconstruction", "label")]
        rows.append([*start(entry), SPLITS[split], *cells, *map(str, counts)])
    caption = (
        "The fixed images above, each in the column of its true class: the class that the classifier gives the "
        "original → the class that it gives the reconstruction. Bold: the two differ, counted as changed. "
        f"{MISREAD}: it misreads the original."
    )
    heads = ["Model", "Run", "Split", *map(comparison.class_name, labels), "Changed", "Misread"]
    return [Table("fixed images", caption, heads, rows, left=3)] if rows else []


def _classes(comparison: Comparison, label: int, original: int, reconstruction: int, **_: int) -> Cell:
    before, after = comparison.class_name(original), comparison.class_name(reconstruction)
    text = f"{before}{MISREAD * (original != label)} → {after}"
    return text if original == reconstruction else Ref(text, strong=True)
