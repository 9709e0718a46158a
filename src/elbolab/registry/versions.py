"""Registered models: versions that say what they are and how good, and an alias that only a better one gets."""

import json
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from elbolab.config.schema import PromoteConfig
from elbolab.evaluation.metrics import ACCURACY, LOG_PX, UNRELIABLE, is_doubtful
from elbolab.support.errors import UserError
from elbolab.support.number_formats import BRIEFLY, DAGGER, dagger
from elbolab.support.statistics import accuracy
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking.artifacts import model_of
from elbolab.tracking.keys import EVALUATION_PROTOCOL, HALF_SENT
from elbolab.tracking.mlflow_reader import RunRecord, is_latent
from elbolab.tracking.run_names import find_training

# Of a run; two figures compare only if these are equal.
# Evaluations of 0.1.0 have no tag of their method.
METHOD = {"evaluation.method": "importance"}
COMPARED_TAGS = (
    "data.digest",
    "observation_model",
    *METHOD,
    "evaluation.samples",
    "evaluation.images",
    "evaluation.seed",
)
SPLITS = ("val", "test")
# Of a version: why it was given the alias that follows.
MADE = "made."


@dataclass(frozen=True)
class Card:
    """What a registered version says of itself: the name of its metric, and by split the mean and standard error."""

    run: str
    tags: dict[str, str]
    figures: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        tags = self.tags
        figures = f"{self.say('val')}, {self.say('test')}"
        said = ["± one standard error", *([BRIEFLY] if DAGGER in figures else [])]
        if not self.counts:
            said.append(
                ", ".join(f"{key} {tags[f'evaluation.{key}']}" for key in ("method", "samples", "images", "seed"))
            )
        aliases = sorted(key for key in tags if key.startswith(MADE))
        made = "".join(f" Made {key.removeprefix(MADE)}: {tags[key]}." for key in aliases)
        return (
            f"{tags['model']} on {tags['data.name']}, {tags['observation_model']}. {figures} "
            f"({'; '.join(said)}). Run {self.run}.{made}"
        )

    @property
    def counts(self) -> bool:
        """Whether its metric counts all images of a split, whatever the evaluation estimates and of how many."""
        return self.tags["metric"] == ACCURACY.name

    def say(self, split: str) -> str:
        """The metric of a split with its standard error, marked where it is unreliable."""
        value, error = self.figures[split]
        text = f"{split}/{self.tags['metric']} {value:.4g} ± {error:.2g}"
        return dagger(text, self.tags.get(f"{split}/{UNRELIABLE.name}") == "true")


def card_of(version: ModelVersion) -> Card | None:
    """The card of a version that was registered here, else None."""
    tags = version.tags
    if "metric" not in tags:
        return None
    key = tags["metric"]
    figures = {split: (float(tags[f"{split}/{key}"]), float(tags[f"{split}/{key}_se"])) for split in SPLITS}
    return Card(str(version.run_id), METHOD | tags, figures)


def register(run_id: str, name: str) -> str:
    """Make the model of an evaluated run a version of the registered model ``name``, unless it is one; returns its URI.

    What the version is, and how good, goes into its tags and its description. Raises UserError where the run is no
    finished and evaluated training, or where the name is not allowed.
    """
    return _uri(_register(name, _card(find_training(run_id))))


def promote(run_id: str, config: PromoteConfig) -> str:
    """Register the model of an evaluated run, give it the alias ``config.alias`` and return its URI.

    Raises UserError, having registered nothing, where the version that has the alias is better on the validation split
    or was not measured alike; with ``config.force`` it is replaced all the same.
    """
    card, client = _card(find_training(run_id)), mlflow.MlflowClient()
    champion = _holder(config.name, config.alias)
    if champion is None or champion.run_id != card.run:
        reason = _against(card, champion, config) if champion else f"the first {config.alias}"
        card = replace(card, tags={**card.tags, MADE + config.alias: reason})
    version = _register(config.name, card)
    client.set_registered_model_alias(config.name, config.alias, version.version)
    return _uri(version)


def list_versions() -> list[ModelVersion]:
    """Every version of every registered model, with its aliases, by name and number."""
    mlflow_reader.prepare_store()
    client = mlflow.MlflowClient()
    found = mlflow_reader.all_pages(lambda token: client.search_model_versions(page_token=token))
    # A search leaves the aliases out.
    versions = [client.get_model_version(item.name, item.version) for item in found]
    return sorted(versions, key=lambda version: (version.name, int(version.version)))


def _card(run: RunRecord) -> Card:
    if "evaluation.samples" not in run.tags or run.tags.get(EVALUATION_PROTOCOL) == HALF_SENT:
        raise UserError(f"run {run.id!r} has not been evaluated; `elbolab evaluate {run.id}` does it")
    metric = LOG_PX if is_latent(run) else ACCURACY
    # An accuracy's error is that of a rate, and is not logged.
    columns = {split: [f"{split}/{name}" for name in (metric.name, f"{metric.name}_se")] for split in SPLITS}
    if is_latent(run):
        if lacking := [key for keys in columns.values() for key in keys if key not in run.metrics]:
            raise UserError(
                f"run {run.id!r} has no {', '.join(lacking)}, since log p(x) was not finite or of one image only; "
                f"`elbolab evaluate {run.id} --images 1000` looks at more"
            )
        figures = {split: (run.metrics[mean], run.metrics[error]) for split, (mean, error) in columns.items()}
    else:
        file = artifacts.read(run.id, "evaluation/classes.json", lambda file: json.loads(file.read_bytes()))
        figures = {split: accuracy(file["splits"][split]["confusion"])[:2] for split in SPLITS}
    tags = {key: (METHOD | run.tags)[key] for key in (*COMPARED_TAGS, "data.name")}
    tags |= {"metric": metric.name, "model": run.params["model"]}
    for split, numbers in figures.items():
        tags |= {key: repr(number) for key, number in zip(columns[split], numbers, strict=True)}
        tags |= {f"{split}/{UNRELIABLE.name}": str(is_doubtful(run.metrics, metric.at(split))).lower()}
    return Card(run.id, tags, figures)


def _holder(name: str, alias: str) -> ModelVersion | None:
    try:
        return mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _against(card: Card, champion: ModelVersion, config: PromoteConfig) -> str:
    """Why the card's model may take the place of ``champion``; raises UserError where it may not."""
    place = f"version {champion.version}, the {config.alias} of {config.name!r}"
    if config.force:
        return f"by force, in the place of version {champion.version}"
    other = card_of(champion)
    if other is None:
        raise UserError(f"{place}, says nothing of how good it is; look at it, and then --force")
    alike = [key for key in ("metric", *COMPARED_TAGS) if not (card.counts and key.startswith("evaluation."))]
    unlike = [key for key in alike if card.tags[key] != other.tags[key]]
    if unlike:
        differences = "; ".join(f"{key} is {card.tags[key]!r} here and {other.tags[key]!r} there" for key in unlike)
        raise UserError(f"run {card.run} cannot be measured against {place}: {differences}; --force if you mean it")
    if card.figures["val"][0] < other.figures["val"][0]:
        below = f"{card.say('val')} of run {card.run} is below {other.say('val')} of {place}"
        raise UserError(f"{below}; --force if you mean it")
    return f"version {champion.version} before it had {other.say('val')}"


def _register(name: str, card: Card) -> ModelVersion:
    client = mlflow.MlflowClient()
    try:
        versions = client.search_model_versions(f"name = '{name}'")
        found = next((version for version in versions if version.run_id == card.run), None)
        # MLflow says on three lines what the caller says on one.
        with redirect_stderr(StringIO()):
            version = found or mlflow.register_model(f"models:/{model_of(card.run)}", name)
    except MlflowException as error:
        raise UserError(f"name={name!r}: {error.message}") from error
    for key, value in card.tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    made = {key: value for key, value in version.tags.items() if key.startswith(MADE)}
    whole = replace(card, tags=made | card.tags)
    client.update_model_version(name, version.version, str(whole))
    return version


def _uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"
