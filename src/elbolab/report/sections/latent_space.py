"""The section of latent space and samples: what the one holds of the images, and how alike the others are to them."""

from math import log

from elbolab.evaluation.metrics import AGGREGATE_KL, FIDELITY, RATE, REPRESENTATION, TEST
from elbolab.report.blocks import Block, Cell, Ref, Table, head, short, shown, start
from elbolab.report.collect import Comparison
from elbolab.report.plots import FLOOR_SLOT
from elbolab.report.tables import REAL
from elbolab.support.number_formats import DASH, number


def latent_space_blocks(comparison: Comparison) -> list[Block]:
    """Return what the evaluations left of it."""
    return [*representation_blocks(comparison), *fidelity_blocks(comparison)]


def representation_blocks(comparison: Comparison) -> list[Table]:
    """Return active units, rate, distortion and aggregate KL on test images."""
    rows: list[list[Cell]] = []
    for row in [row for row in comparison.tables["representation"] if row["split"] == TEST]:
        entry = comparison.runs[row["run"]][1]
        numbers = [shown(metric, row) for metric in REPRESENTATION]
        images, information = row["images"], row[RATE.name] - row[AGGREGATE_KL.name]
        most = f"{number(information)} of {number(log(images))}" if images else DASH
        rows.append([*start(entry), str(row["latent_dim"] or DASH), *numbers, most])
    heads = ["Model", "Run", "D", *map(head, REPRESENTATION), "Mutual information"]
    caption = (
        "(a) The evaluated test images under inferred posteriors, nats. D: latent dimensions. Active: the posterior "
        "mean's variance over images is above 0.01 (Burda et al. 2016). Rate: mean KL of q(z|x) to the prior ± "
        "standard error, in closed form or, where there is none, over ten samples an image; with the distortion it "
        "sums to the negative ELBO of these images, not quite that of the split (Alemi et al. 2018). Aggregate KL: "
        "how far the average of all q(z|x) is from the prior, where samples are drawn; the rest of the rate is mutual "
        "information of image and z, beside the most that so many images allow (Hoffman & Johnson 2016)."
    )
    return [Table("representation", caption, heads, rows)] if rows else []


def fidelity_blocks(comparison: Comparison) -> list[Table]:
    """Return the distances of decoded samples from test images, for each classifier that they were measured by."""
    blocks: list[Table] = []
    rows: list[list[Cell]] = []
    for row in comparison.tables["fidelity"]:
        real = row["model"] == REAL
        slot = FLOOR_SLOT if real else comparison.runs[row["run"]][1].slot
        numbers = [shown(metric, row) for metric in FIDELITY]
        rows.append([Ref(row["model"], slot=slot), short(row["run"]), *numbers])
        if real:
            cnn = (row["cnn_run"] or DASH)[:8]
            caption = (
                "(b) Expected images at draws from the prior against as many test images, on the penultimate "
                f"activations of cnn {cnn}. Fréchet distance and KID ± standard error are lower, the others higher, "
                "the more alike the two sets are. The last row has training images in the samples' place: what real "
                "images reach in each column. Precision and density can be above it where samples keep to the "
                "commonest images. These numbers compare only within one cnn and one number of images, and are no FID "
                "or KID on the Inception network."
            )
            blocks.append(Table(f"fidelity {cnn}", caption, ["Model", "Run", *map(head, FIDELITY)], rows))
            rows = []
    return blocks
