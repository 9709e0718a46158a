"""The figures of a study, as they are kept with its run: Optuna's own, and the rate-distortion plane."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from elbolab.evaluation.metrics import DISTORTION, KL
from elbolab.support import figures

WIDTH, HEIGHT = 7, 4
"""Of a figure, in inches."""


def draw_study(study: optuna.Study, metrics: Sequence[str], folder: Path) -> list[Path]:
    """Draw what the finished trials allow into ``folder`` as PNGs; returns the paths of those that could be drawn."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    searched = [key for key in complete[0].params if len({trial.params[key] for trial in complete}) > 1]
    tell_apart = len(complete) > 3 and len(searched) > 1
    importances = partial(plots.plot_param_importances, study, params=searched)
    drawn: dict[str, Callable[[], Any]] = {}
    widths = {"slice": 3.2 * len(searched), "parallel_coordinates": 9}
    if len(metrics) > 1:
        # Optuna draws no front of more dimensions.
        if len(metrics) <= 3:
            drawn["pareto_front"] = partial(_pareto_front, study, metrics)
        for place, metric in enumerate(metrics) if tell_apart else ():
            name, target = f"importances_{metric.removeprefix('val/')}", _loss_of(study, place)
            drawn[name] = partial(importances, target=target, target_name=metric)
    else:
        named = {"target_name": metrics[0]}
        drawn["history"] = partial(plots.plot_optimization_history, study, **named)
        if len(complete) > 1 and searched:
            drawn["slice"] = partial(plots.plot_slice, study, searched, **named)
            drawn["parallel_coordinates"] = partial(plots.plot_parallel_coordinate, study, searched, **named)
        if tell_apart:
            drawn["importances"] = partial(importances, **named)
    with warnings.catch_warnings():
        for kind in (ExperimentalWarning, UserWarning):
            warnings.simplefilter("ignore", kind)
        paths = []
        for name, paint in drawn.items():
            file = folder / f"{name}.png"
            paths.append(figures.draw(file.name, partial(_save, paint, widths.get(name, WIDTH), file)))
    return [path for path in paths if path is not None]


def _loss_of(study: optuna.Study, place: int) -> Callable[[optuna.trial.FrozenTrial], float]:
    # With a target Optuna takes the lower for the better, and says so.
    sign = 1 if study.directions[place] == StudyDirection.MINIMIZE else -1
    return lambda trial: sign * trial.values[place]


def _save(paint: Callable[[], Axes | np.ndarray], width: float, path: Path) -> Path:
    figure = np.ravel(np.asarray(paint()))[0].figure
    figure.set_size_inches(width, HEIGHT)
    for part in figure.axes:
        # Between two powers of ten there is no room for more numbers.
        part.xaxis.set_minor_formatter(NullFormatter())
        part.yaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=120, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def _pareto_front(study: optuna.Study, metrics: Sequence[str]) -> Axes:
    """The front; of rate and distortion with lines of equal ELBO, as in Alemi et al. 2018, figure 3."""
    order = sorted(range(len(metrics)), key=lambda place: metrics[place] == DISTORTION.at("val"))
    axes = plots.plot_pareto_front(
        study,
        target_names=[metrics[place] for place in order],
        targets=lambda trial: [trial.values[place] for place in order],
    )
    axes.set_title(study.study_name)
    if set(metrics) == {KL.at("val"), DISTORTION.at("val")}:
        axes.set(xlabel="rate KL(q || p), nats", ylabel="distortion -E[log p(x | z)], nats")
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        _equal_elbo(axes, np.array([sum(trial.values) for trial in complete]))
    return axes


def _equal_elbo(axes: Axes, sums: np.ndarray) -> None:
    """Lines on which rate + distortion, the negative ELBO, is the same; ``sums`` are those of the trials."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for elbo in np.unique(np.linspace(sums.min(), sums.max(), 5).round()):
        axes.axline((left, elbo - left), slope=-1, color="0.7", linewidth=0.8, zorder=0)
        # Where the line leaves the picture, at the right or at the bottom.
        x = min(right, elbo - low)
        place = {"xytext": (-2, 4), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"ELBO {-elbo:.0f}", (x, elbo - x), fontsize=7, color="0.5", **place)
    axes.set(xlim=(left, right), ylim=(low, high))
