"""The figure of one training's curves, as it is kept with the run."""

from pathlib import Path

from matplotlib.figure import Figure

PANELS = {"loss": "loss", "mse": "mean squared error", "kl": "KL in nats", "accuracy": "accuracy"}


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """Draw each of loss, mse, kl and accuracy that the epochs of ``history`` have, training against validation."""
    keys = [key for key in PANELS if f"train/{key}" in history[-1]]
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(4 * len(keys), 3), layout="constrained")
    for key, axes in zip(keys, figure.subplots(1, len(keys), squeeze=False)[0], strict=True):
        for split, style in (("train", "-"), ("val", "--")):
            values = [metrics[f"{split}/{key}"] for metrics in history]
            axes.plot(epochs, values, style, marker="." if len(values) < 3 else "", label=split)
        axes.set(xlabel="epoch", title=PANELS[key])
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
