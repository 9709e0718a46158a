"""The figures of a study, as they are kept with its run: Optuna's own, and the rate-distortion plane."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from elbolab.evaluation.metrics import DISTORTION, KL

RATE_DISTORTION = {KL.at("val"), DISTORTION.at("val")}


def draw_study(study: optuna.Study, metrics: Sequence[str], folder: Path) -> list[Path]:
    """Draw what the finished trials allow into ``folder`` as PNGs; returns their paths."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    figures: dict[str, Callable[[], Figure]] = {}
    searched = [key for key in complete[0].params if len({trial.params[key] for trial in complete}) > 1]
    tell_apart = len(complete) > 3 and len(searched) > 1
    if len(metrics) > 1:
        figures["pareto_front"] = lambda: _pareto_front(study, metrics)
        for place, metric in enumerate(metrics) if tell_apart else ():
            name = f"importances_{metric.removeprefix('val/')}"
            figures[name] = partial(_importances, study, searched, place, metric)
    else:
        metric = metrics[0]
        figures["history"] = lambda: _whole(plots.plot_optimization_history(study, target_name=metric))
        if len(complete) > 1 and searched:
            width = 3.2 * len(searched)
            figures["slice"] = lambda: _whole(plots.plot_slice(study, searched, target_name=metric), width)
            figures["parallel_coordinates"] = lambda: _whole(
                plots.plot_parallel_coordinate(study, searched, target_name=metric), 9
            )
        if tell_apart:
            figures["importances"] = lambda: _whole(
                plots.plot_param_importances(study, params=searched, target_name=metric)
            )
    paths = []
    for name, draw in figures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            figure = draw()
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120, bbox_inches="tight", facecolor="white")
        plt.close(figure)
    return paths


def _importances(study: optuna.Study, searched: list[str], place: int, metric: str) -> Figure:
    """How much each parameter matters to one of several objectives."""
    # With a target Optuna takes the lower for the better, and says so.
    sign = 1 if study.directions[place] == StudyDirection.MINIMIZE else -1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _whole(
            plots.plot_param_importances(
                study, params=searched, target=lambda trial: sign * trial.values[place], target_name=metric
            )
        )


def _whole(axes: Axes | np.ndarray, width: float = 7) -> Figure:
    figure = np.ravel(np.asarray(axes))[0].figure
    figure.set_size_inches(width, 4)
    for part in figure.axes:
        # Between two powers of ten there is no room for more numbers.
        part.xaxis.set_minor_formatter(NullFormatter())
        part.yaxis.set_minor_formatter(NullFormatter())
    return figure


def _pareto_front(study: optuna.Study, metrics: Sequence[str]) -> Figure:
    """Two objectives against each other, the front joined; rate against distortion as in Alemi et al. 2018, fig. 3."""
    if len(metrics) > 2:
        return _whole(plots.plot_pareto_front(study, target_names=list(metrics)))
    order = [1, 0] if metrics[0] == DISTORTION.at("val") else [0, 1]
    values = np.array([trial.values for trial in study.get_trials(states=(TrialState.COMPLETE,))])[:, order]
    front = np.array(sorted([trial.values[i] for i in order] for trial in study.best_trials))
    figure, axes = plt.subplots(figsize=(6.5, 5), layout="constrained")
    axes.plot(*front.T, "-o", color="C0", zorder=3, label="Pareto front")
    axes.scatter(*values.T, color="0.6", s=18, label="trials")
    axes.set(xlabel=metrics[order[0]], ylabel=metrics[order[1]], title=study.study_name)
    if set(metrics) == RATE_DISTORTION:
        axes.set(xlabel="rate KL(q || p), nats", ylabel="distortion -E[log p(x | z)], nats")
        _equal_elbo(axes, values)
    axes.legend(frameon=False)
    return figure


def _equal_elbo(axes: Axes, values: np.ndarray) -> None:
    """Lines on which rate + distortion, the negative ELBO, is the same."""
    sums = values.sum(1)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for elbo in np.unique(np.linspace(sums.min(), sums.max(), 5).round()):
        axes.axline((left, elbo - left), slope=-1, color="0.85", linewidth=0.8, zorder=0)
        # Where the line leaves the picture, at the right or at the bottom.
        x = min(right, elbo - low)
        place = {"xytext": (-2, 4), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"ELBO {-elbo:.0f}", (x, elbo - x), fontsize=7, color="0.5", **place)
    axes.set(xlim=(left, right), ylim=(low, high))
