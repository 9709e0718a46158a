"""The section of latent-variable models, one or many side by side: what each is, its curves and its pictures."""

from collections.abc import Sequence

from elbolab.evaluation.metrics import ELBO, KL, LOSS, MSE, VAL
from elbolab.report import sentences
from elbolab.report.blocks import Block, Cell, Ref, Table, curve_blocks, notes, picture_rows, start
from elbolab.report.collect import Comparison, Entry
from elbolab.support.number_formats import DASH


def latent_blocks(comparison: Comparison) -> list[Block]:
    """Return the models, and what their trainings left: curves, reconstructions, class changes and samples."""
    entries = comparison.latents
    best = [sentences.best(entry, comparison.curves.get((entry.run.id, ELBO.at(VAL)), {})) for entry in entries]
    classes = [one for entry in entries for one in (sentences.class_kept(entry), *sentences.ten(entry))]
    alike = len(entries) > 1 and len({entry.run.params.get("latent_dim") for entry in entries}) == 1
    noise = ": the same noise at each epoch" + (" and for every run." if alike else ".")
    digits = "digits at each epoch, originals above, reconstructions below."
    return [
        *axes_table(entries),
        *curve_blocks(comparison, entries, (LOSS, MSE, KL)),
        *notes(*best),
        *picture_rows(entries, "reconstructions_val", f"The same ten validation {digits}"),
        *picture_rows(entries, "reconstructions_train", f"The same ten training {digits}"),
        *ten_table(entries),
        *notes(*classes),
        *picture_rows(entries, "samples", f"Samples decoded from the prior{noise}"),
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


def ten_table(entries: Sequence[Entry]) -> list[Table]:
    """Return the classes that the classifier gives the fixed digits and their reconstructions."""
    tens = [(entry, split, ten) for entry in entries for split, ten in entry.classes.get("ten", {}).items()]
    labels = sorted({one["label"] for _, _, ten in tens for one in ten})
    rows: list[list[Cell]] = []
    for entry, split, ten in tens:
        pairs = {one["label"]: (one["original"], one["reconstruction"]) for one in ten}
        changed = sum(a != b for a, b in pairs.values())
        # A split may have no image of a class.
        cells = [_change(*pairs[label]) if label in pairs else "" for label in labels]
        rows.append([*start(entry), split, *cells, f"{changed} of {len(ten)}"])
    caption = "The class given to each fixed digit and, where it differs (→), to its reconstruction."
    heads = ["Model", "Run", "Split", *map(str, labels), "Changed"]
    return [Table("fixed digits", caption, heads, rows, left=3)] if rows else []


def _change(a: int, b: int) -> Cell:
    return str(a) if a == b else Ref(f"{a} → {b}", strong=True)
