"""What a study is: a model, the config fields that it searches or lists, and the validation metrics it is judged by."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial, Trial
from pydantic import Field, model_validator

from elbolab.config.base import Settings, Value, Values
from elbolab.config.schema import DATA_FIELDS, Config
from elbolab.evaluation.metrics import ACCURACY, DISTORTION, ELBO, KL, LOG_PX, LOSS, MSE, Metric
from elbolab.models import MODELS
from elbolab.models.latent import LatentModel
from elbolab.support.errors import UserError
from elbolab.support.user_code import Source


def _directions(*metrics: Metric) -> dict[str, Literal["maximize", "minimize"]]:
    return {metric.at("val"): metric.best for metric in metrics if metric.best is not None}


LATENT_METRICS = _directions(LOG_PX, ELBO, DISTORTION, KL, MSE)
# What can be had for nothing by giving up the other side: a rate of 0 is a collapsed posterior.
ONE_SIDED = _directions(DISTORTION, KL, MSE)
CLASSIFIER_METRICS = _directions(ACCURACY, LOSS)
# Under other values of these the same number means something else.
OTHER_DATA = {"data_dir", *DATA_FIELDS}
OBSERVATION_FIELDS = {"likelihood", "sigma", "free_sigma"}


class Study(Settings):
    """A question about one model: which values of some fields are best on validation images.

    Either ``search`` names fields, searched in the ranges that they declare (``narrow`` takes a part of one: its bounds
    or its choices), or ``configs`` lists what to try, each under every one of ``seeds``. Refused when it is made if a
    metric is not comparable from trial to trial: a loss weighted by beta, a likelihood across observation models, any
    metric across data, or anything of the test split.
    """

    model: str
    """Name in MODELS, or path/to/file.py:Name of one of your own."""
    base: dict[str, Value] = Field(default_factory=dict)
    """Values of other fields, the same in every trial."""
    search: tuple[str, ...] = ()
    """Fields to search."""
    narrow: dict[str, Values] = Field(default_factory=dict)
    """For a searched field, (low, high) within its range, or some of its choices."""
    configs: tuple[dict[str, Value], ...] = ()
    """Values of fields to try, a dict a config, instead of a search."""
    seeds: tuple[int, ...] = (0,)
    """Seeds under which each of ``configs`` is trained."""
    metrics: tuple[str, ...] = Field(default=(LOG_PX.at("val"),), min_length=1)
    """What is optimised, each in the direction of its kind; more than one gives a Pareto front."""
    images: int = Field(default=200, gt=0)
    """Validation images, stratified, of which val/log_px is the mean."""
    samples: int = Field(default=200, gt=0)
    """Importance samples an image of val/log_px."""
    pruner: Literal["median", "hyperband", "none"] | None = None
    """Who stops a trial by its validation value, epoch by epoch; none by default for several metrics or a list."""
    trials: int = Field(default=50, gt=0)
    """Finished or pruned trials by default; a list of configs has as many as it has points."""

    defaults: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Defaults of fields where the study began under other ones than today's; not given by whoever writes a study."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        MODELS.find(self.model)
        if bool(self.search) == bool(self.configs):
            raise ValueError("a study has either search or configs; give one of them")
        if self.pruner not in (None, "none") and len(self.metrics) > 1:
            raise ValueError(f"pruner={self.pruner!r} needs one metric, not {len(self.metrics)}; leave one of them out")
        self._check_metrics()
        self._check_list()
        if unsearched := set(self.narrow) - set(self.search):
            raise ValueError(f"narrow names {', '.join(sorted(unsearched))}, which search does not")
        for values in self.configs or ({},):
            self.config_of(values)
        for name, wide in self.space.items() if self.search else ():
            for value in wide.choices if isinstance(wide, CategoricalDistribution) else ():
                self.config_of({name: value})
        return self

    def _check_metrics(self) -> None:
        allowed = LATENT_METRICS if issubclass(MODELS[self.model], LatentModel) else CLASSIFIER_METRICS
        changing = set(self.search) | {name for values in self.configs for name in values}
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics={self.metrics} has one twice; give each once")
        if self.base.get("free_sigma"):
            raise ValueError("free_sigma gives every trial an observation model of its own; leave it out of base")
        for metric in self.metrics:
            if not metric.startswith("val/"):
                raise ValueError(f"metric {metric!r} is not of the validation split, all that a study may read")
            if metric not in allowed:
                beta = " (it is weighted by beta)" if metric == LOSS.at("val") else ""
                raise ValueError(f"metric {metric!r} does not compare trials{beta}; take one of {', '.join(allowed)}")
            if metric in ONE_SIDED and len(self.metrics) == 1:
                raise ValueError(f"metric {metric!r} alone is one side of a trade; add another, or take val/elbo")
            apart = changing & (OTHER_DATA if allowed is CLASSIFIER_METRICS else OTHER_DATA | OBSERVATION_FIELDS)
            if apart:
                raise ValueError(
                    f"metric {metric!r} is not comparable across {', '.join(sorted(apart))}; fix it in base"
                )

    def _check_list(self) -> None:
        if self.configs and "seed" in {name for values in (self.base, *self.configs) for name in values}:
            raise ValueError("seed is given by seeds in a study with configs; leave it out of base and configs")
        if len(set(self.seeds)) < len(self.seeds) or any(self.configs.count(values) > 1 for values in self.configs):
            raise ValueError("configs and seeds must each be listed once; leave the repeated ones out")
        configs = [self.config_of(values) for values in self.configs]
        if alike := [self.configs[place] for place, one in enumerate(configs) if one in configs[:place]]:
            raise ValueError(f"configs has {alike[0]}, which is the same as one before it; leave it out")

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """The range of each parameter of a trial: the searched fields, or the place in the list and the seed."""
        if self.configs:
            return {
                "config": CategoricalDistribution(list(range(len(self.configs)))),
                "seed": CategoricalDistribution(list(self.seeds)),
            }
        ranges = {name: MODELS[self.model].Config.search_range(name) for name in self.search}
        ranges = {name: _narrowed(name, whole, self.narrow.get(name)) for name, whole in ranges.items()}
        return {name: wide if name in self.narrow else self._taken(name, wide) for name, wide in ranges.items()}

    def _taken(self, name: str, wide: BaseDistribution) -> BaseDistribution:
        """Of choices those that the model takes beside the values of base."""
        if not isinstance(wide, CategoricalDistribution):
            return wide
        taken = [value for value in wide.choices if self._takes({name: value})]
        # Where it takes none, something else is wrong, and the first trial says what.
        return CategoricalDistribution(taken) if taken else wide

    def _takes(self, params: Mapping[str, Any]) -> bool:
        try:
            self.config_of(params)
        except UserError:
            return False
        return True

    @property
    def points(self) -> list[dict[str, Any]]:
        """The parameters of every trial, where the study is a list."""
        return [{"config": config, "seed": seed} for config in range(len(self.configs)) for seed in self.seeds]

    @property
    def any_config(self) -> Config:
        """The config of some trial, which has the data of all."""
        return self.config_of(self.points[0] if self.configs else {})

    @property
    def code(self) -> dict[str, Source]:
        """The user's own code of its model, as it is now."""
        return MODELS[self.model].code_of(self.any_config)

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """The direction of each metric, as Optuna names it."""
        return [(LATENT_METRICS | CLASSIFIER_METRICS)[metric] for metric in self.metrics]

    @property
    def metric(self) -> str:
        """The metric, where there is one."""
        return self.metrics[0]

    @property
    def stops_by(self) -> str:
        """The pruner, given or by default."""
        return self.pruner or ("none" if self.configs or len(self.metrics) > 1 else "median")

    @property
    def epoch_metric(self) -> str:
        """What pruning reads at each epoch: the metric itself, or for log p(x) the model's own bound."""
        if self.metric != LOG_PX.at("val"):
            return self.metric
        kind = MODELS[self.model]
        assert issubclass(kind, LatentModel)
        return f"val/{kind.score_metric}"

    def suggest(self, trial: BaseTrial) -> Config:
        """The config of a trial; of choices those with which the study began, where there are more today."""
        space = {name: _as_begun(trial, name, wide) for name, wide in self.space.items()}
        return self.config_of({name: _suggest(trial, name, wide) for name, wide in space.items()})

    def config_of(self, params: Mapping[str, Any]) -> Config:
        """The config of these parameters of a trial; raises UserError where they are out of bounds."""
        if "config" in params:
            params = {**self.configs[params["config"]], "seed": params["seed"]}
        return MODELS[self.model].Config.parse({**self.defaults, **self.base, **params})


def with_distortion(metrics: Mapping[str, float]) -> dict[str, float]:
    """``metrics`` with the distortion, where they have a rate: -ELBO = distortion + rate (Alemi et al. 2018, eq. 4)."""
    elbo, rate, distortion = (metric.at("val") for metric in (ELBO, KL, DISTORTION))
    return {**metrics, distortion: -metrics[elbo] - metrics[rate]} if rate in metrics else dict(metrics)


def _as_begun(trial: BaseTrial, name: str, wide: BaseDistribution) -> BaseDistribution:
    if not isinstance(wide, CategoricalDistribution) or not isinstance(trial, Trial):
        return wide
    earlier = (one.distributions.get(name) for one in trial.study.get_trials(deepcopy=False))
    begun = next((one for one in earlier if isinstance(one, CategoricalDistribution)), wide)
    # Optuna takes no others than those of the first trial.
    return begun if set(begun.choices) < set(wide.choices) else wide


def _suggest(trial: BaseTrial, name: str, wide: BaseDistribution) -> Any:
    if isinstance(wide, CategoricalDistribution):
        return trial.suggest_categorical(name, wide.choices)
    assert isinstance(wide, IntDistribution | FloatDistribution)
    kind = trial.suggest_int if isinstance(wide, IntDistribution) else trial.suggest_float
    return kind(name, wide.low, wide.high, log=wide.log)  # pyright: ignore[reportArgumentType]


def _narrowed(name: str, whole: BaseDistribution, part: Sequence[Any] | None) -> BaseDistribution:
    if part is None:
        return whole
    if isinstance(whole, CategoricalDistribution):
        if not set(part) <= set(whole.choices):
            raise UserError(f"narrow {name}={part} must be among its choices {whole.choices}")
        return CategoricalDistribution(list(part))
    assert isinstance(whole, IntDistribution | FloatDistribution)
    numbers = len(part) == 2 and all(isinstance(bound, int | float) for bound in part)
    if not numbers or not whole.low <= part[0] < part[1] <= whole.high:
        raise UserError(f"narrow {name}={part} must be two bounds within its range, {whole.low} to {whole.high}")
    return type(whole)(part[0], part[1], log=whole.log)
