"""The figure of one training's curves, as it is kept with the run."""

import io
from functools import partial

from elbolab.support import figures

PANELS = {"elbo": "-ELBO", "loss": "loss", "mse": "mean squared error", "kl": "KL in nats", "accuracy": "accuracy"}


def draw_curves(history: list[dict[str, float]]) -> bytes | None:
    """The PNG of each of PANELS that the epochs of ``history`` have, training against validation; None where it fails.

    Where there is an ELBO it stands for the loss, in which the weight of the KL term may change by the epoch.
    """
    return figures.draw("figures/curves.png", partial(_paint, history))


def _paint(history: list[dict[str, float]]) -> bytes:
    from matplotlib.figure import Figure

    keys = [key for key in PANELS if f"train/{key}" in history[-1]]
    keys = [key for key in keys if key != "loss" or "elbo" not in keys]
    epochs = range(1, len(history) + 1)
    width = 4 * len(keys)
    figure = Figure(figsize=(width, 3))
    # A layout that matplotlib finds by itself draws everything twice.
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.15 / width, bottom=0.16, top=0.9, wspace=0.22)
    for key, axes in zip(keys, figure.subplots(1, len(keys), squeeze=False)[0], strict=True):
        for split, style in (("train", "-"), ("val", "--")):
            sign = -1 if key == "elbo" else 1
            values = [sign * metrics[f"{split}/{key}"] for metrics in history]
            axes.plot(epochs, values, style, marker="." if len(values) < 3 else "", label=split)
        axes.set(xlabel="epoch", title=PANELS[key])
        axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    return png.getvalue()
