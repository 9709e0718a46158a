"""How rates fall, and when a training ends: after fixed epochs, or when its validation score has stopped improving."""

import math
from collections.abc import Callable, Iterable, Sequence

from elbolab.config.schema import Config

# Once the score had stopped improving, ten or twenty more epochs on mnist5k won as much at a tenth of the rate as along
# a half cosine to 0 (vae), or more (latent_opt, which went on improving).
FALLEN = 0.1
# The part of a training in which the rate of `cooldown` falls.
COOLDOWN = 0.2


class Schedule:
    """The rates of one training and its end, from the validation scores of the epochs that are done.

    By the schedule `plateau` rates stay until the score has stopped improving, then are a tenth until it has again,
    with which the training ends. Where it does not stop, rates fall 2 patience epochs before the most epochs, or in the
    middle of less than 4 patience.

    ``steps`` are those of an epoch, 0 where they are not known: patience is at least ``patience_steps`` of them.
    ``scores`` has one for each epoch; nothing else is to be kept to resume a training. Scores of epochs in which
    ``kl_weight`` changed are not judged: they are those of other losses. A closed form, which has no rates, is
    converged.
    """

    def __init__(
        self,
        config: Config,
        kl_weight: Callable[[float], float],
        is_closed: bool = False,
        scores: Iterable[float] = (),
        steps: int = 0,
    ) -> None:
        self._config = config
        self._kl_weight = kl_weight
        self._is_closed = is_closed
        self._first_judged = 0
        self._patience = max(config.patience, math.ceil(config.patience_steps / steps) if steps else 0)
        self._falls_after = max(config.epochs - 2 * self._patience, math.ceil(config.epochs / 2))
        self._plateaus = 0
        self.last = config.epochs
        """The last epoch; while that is not known the most."""
        self.scores: list[float] = []
        for score in scores:
            self.add(score)

    def add(self, score: float) -> None:
        """Take the validation score of the next epoch."""
        self.scores.append(score)
        config, epoch = self._config, len(self.scores)
        if self._kl_weight(epoch) != self._kl_weight(epoch - 1):
            self._first_judged = epoch
        if config.schedule != "plateau":
            return
        judged = self.scores[self._first_judged :]
        if has_stopped_improving(judged, self._patience, config.min_improvement):
            self._plateaus += 1
            if epoch <= self._falls_after:
                self._falls_after = epoch
            else:
                self.last = epoch
        if epoch == self._falls_after:
            self._first_judged = epoch

    @property
    def is_open(self) -> bool:
        """Whether the training may end before ``last``."""
        return self._config.schedule == "plateau" and len(self.scores) < self.last

    def factor(self, epochs: float) -> float:
        """By what the first rates are multiplied, ``epochs`` into the training."""
        if self._config.schedule == "plateau":
            return 1.0 if epochs < self._falls_after else FALLEN
        return rate_factor(self._config, epochs)

    @property
    def converged(self) -> bool:
        """Whether the score had stopped improving, as ``has_stopped_improving`` says; of a training that is over.

        By the schedule `plateau`, before the rates fell and after. By any other, at the last epoch whose rate was at
        least half the mean of all epochs: as a rate goes to 0 every score levels off, whether converged or not.
        """
        config = self._config
        if self._is_closed or config.schedule == "plateau":
            return self._is_closed or self._plateaus == 2
        rates = [rate_factor(config, epoch + 0.5) for epoch in range(config.epochs)]
        least = sum(rates) / len(rates) / 2
        judged = [score for score, rate in zip(self.scores, rates, strict=True) if rate >= least]
        return has_stopped_improving(judged[self._first_judged :], self._patience, config.min_improvement)


def has_stopped_improving(scores: Sequence[float], patience: int, least: float) -> bool:
    """Whether the mean of the last ``patience`` scores is at most ``least`` above that of as many before them.

    False for fewer than 2 ``patience`` scores. A score is a noisy estimate, of one latent sample an image: the best of
    n of them goes on rising with n where nothing improves, and one lucky score hides an improvement. Means do neither;
    their difference has a standard error of sqrt(2 / patience) standard deviations of a score.
    """
    if len(scores) < 2 * patience:
        return False
    last, before = scores[-patience:], scores[-2 * patience : -patience]
    return (sum(last) - sum(before)) / patience <= least


def fewest_epochs(config: Config) -> int:
    """The number of epochs that a training has at least."""
    return min(4 * config.patience, config.epochs) if config.schedule == "plateau" else config.epochs


def rate_factor(config: Config, epochs: float) -> float:
    """By what the first rates are multiplied, ``epochs`` into a training of fixed epochs."""
    match config.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * epochs / config.epochs))
        case "cooldown":
            # Hägele et al. 2024, section 3: it does as well as a cosine, with the first rate for longer.
            return min(1.0, (1 - epochs / config.epochs) / COOLDOWN)
        case "staged":
            # Stage i begins after 1 + 3 + ... + 3^(i - 1) passes.
            return 10 ** (-sum(epochs >= (3**i - 1) / 2 for i in range(1, 8)) / 7)
        case _:
            return 1.0
