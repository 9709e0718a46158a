"""What the trainings behind a report cost by epoch: gradient steps and seconds."""

from itertools import accumulate
from math import ceil

from elbolab.evaluation.metrics import IMAGES_PER_S, SECONDS, STEPS, TRAIN
from elbolab.report.collect import Comparison, Entry


def steps_by_epoch(comparison: Comparison, entry: Entry) -> dict[int, float]:
    """The gradient steps of an entry's shown run by epoch; if it logged none, from its parameters."""
    run = entry.run
    if logged := comparison.curves.get((run.id, STEPS.at(TRAIN))):
        return logged
    if run.train_images is None or "batch_size" not in run.params:
        return {}
    # Of runs before steps were logged one field made several of a visit.
    visits = ceil(run.train_images / int(run.params["batch_size"])) * int(run.params.get("latent_steps", 1))
    return {epoch: float(epoch * visits) for epoch in comparison.score(entry)}


def seconds_by_epoch(comparison: Comparison, entry: Entry) -> dict[int, float]:
    """The seconds of training of an entry's shown run by epoch; if it logged none, from its speed."""
    run = entry.run
    if logged := comparison.curves.get((run.id, SECONDS.at(TRAIN))):
        return logged
    speed = comparison.curves.get((run.id, IMAGES_PER_S.at(TRAIN)), {})
    if run.train_images is None:
        return {}
    return dict(zip(speed, accumulate(run.train_images / each for each in speed.values()), strict=True))
