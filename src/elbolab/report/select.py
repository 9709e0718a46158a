"""Which finished runs of the tracking server a report is made of: compared ones, their seeds and their ablations."""

import math
import sys
from collections.abc import Iterable, Sequence

from elbolab.config.schema import DATA_FIELDS
from elbolab.evaluation.metrics import ACCURACY, ELBO
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader
from elbolab.tracking.keys import CONVERGED
from elbolab.tracking.mlflow_reader import RunRecord, is_evaluated, is_latent

# A page for people has an end, and so has what is read for it: the newest runs of a model are looked through, and of
# what is found so many seeds and ablations are kept.
OTHERS, MOST_SEEDS, MOST_ABLATIONS = 50, 10, 20
FITTED, EXACT = "fitted", "exact"
INFERENCES = ("encoder", "refined", FITTED, EXACT)
"""Whence the posteriors of a latent-variable model come, in the order of the page."""

Group = tuple[RunRecord, ...]
"""Runs that differ in their seed only, first the one that is shown."""


def inference_of(run: RunRecord) -> str:
    """Whence the posteriors of a run's images come, one of ``INFERENCES``; empty where nothing has said it."""
    return run.tags.get("evaluation.posterior", run.tags.get("inference", "")).partition(":")[0]


def in_order(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Classifiers first, then latent-variable models by their inference and name; equal ones stay as they come."""

    def place(run: RunRecord) -> tuple[bool, int, str]:
        kind = inference_of(run)
        return is_latent(run), INFERENCES.index(kind) if kind in INFERENCES else len(INFERENCES), run.params["model"]

    return sorted(runs, key=place)


def labels_of(runs: Sequence[RunRecord]) -> list[str]:
    """What each of some runs is called beside the others: its model, and its id where two have one model."""
    names = [run.params["model"] for run in runs]
    return [name if names.count(name) == 1 else f"{name} {run.id[:8]}" for name, run in zip(names, runs, strict=True)]


def once_each(named: Iterable[RunRecord]) -> list[RunRecord]:
    """The runs that somebody names, each once; raises UserError where two have different observation models."""
    runs = list({run.id: run for run in named}.values())
    refuse_mixed([run for run in runs if is_latent(run)], "observation_model", "observation models")
    return runs


def refuse_mixed(runs: Sequence[RunRecord], tag: str, what: str) -> None:
    """Raise UserError naming both runs and both values when a tag differs from the first run's."""
    for run in runs[1:]:
        one, other = runs[0].tags.get(tag), run.tags.get(tag)
        if one != other:
            raise UserError(
                f"runs of different {what} cannot be compared: {tag} is `{one}` in run {runs[0].id} "
                f"and `{other}` in run {run.id}"
            )


def by_dataset(named: Sequence[RunRecord]) -> list[list[Group]]:
    """The runs named, those of each dataset together and grouped by seed, a group's newest first.

    Raises UserError for two splits of one dataset.
    """
    datasets: dict[str, list[RunRecord]] = {}
    for run in sorted(named, key=lambda run: (-run.start, run.id)):
        datasets.setdefault(run.tags["data.name"], []).append(run)
    found = []
    for _, runs in sorted(datasets.items()):
        refuse_mixed(runs, "data.digest", "data")
        left, groups = in_order(runs), []
        while left:
            groups.append(with_seeds(left[0], left))
            left = [run for run in left if run not in groups[-1]]
        found.append(groups)
    return found


def latest_runs(dataset: str | None) -> list[Group]:
    """The latest run of each model that shares data and observation model with the latest of all, or one before it that
    has converged where that is no worse: a report ranks no other.

    Standard error says what is left out. Raises UserError when there is no run of the dataset.
    """
    newest = mlflow_reader.newest_of_each("model", {"data.name": dataset} if dataset else {})
    if not newest:
        have = sorted({run.tags.get("data.name", "") for run in mlflow_reader.find_runs(limit=100)})
        of = f" on dataset {dataset} (there are runs on {', '.join(have)})" if dataset and have else ""
        raise UserError(f"no finished train run{of} in this experiment: train one first, e.g. `elbolab vae`")
    anchor = next((run for run in newest if is_latent(run)), newest[0])
    first: dict[str, RunRecord] = {}
    for run in newest:
        params, tags = _alike(run, anchor)
        found = [run] if _same_task(run, anchor) else mlflow_reader.find_runs("train", params, tags, limit=1)
        if found and found[0].tags.get(CONVERGED) != "true":
            converged = mlflow_reader.find_runs("train", params, {**tags, CONVERGED: "true"}, limit=1)
            for one in [one for one in converged if _shows_more(one, found[0])]:
                state = "has not" if found[0].tags.get(CONVERGED) == "false" else "is not known to have"
                text = f"the newest run of {run.params['model']}, {found[0].id[:8]}, {state} converged"
                print(f"elbolab: {text}; {one.id[:8]} is compared, or what --run names", file=sys.stderr)
                found = [one]
        first.update((one.params["model"], one) for one in found)
    return [(run,) for run in in_order(first.values())]


def _shows_more(one: RunRecord, newer: RunRecord) -> bool:
    """Whether a converged run is to be shown instead of a newer one: evaluated if that is, and no worse at its end."""
    key = (ELBO if is_latent(one) else ACCURACY).at("val")
    better = newer.metrics.get(key, -math.inf) > one.metrics.get(key, -math.inf)
    return not better and (is_evaluated(one) or not is_evaluated(newer))


def others(base: RunRecord) -> list[RunRecord]:
    """The newest runs of a run's model on its task: where its other seeds and its ablations are looked for."""
    return mlflow_reader.find_runs("train", *_alike(base, base), limit=OTHERS)


def with_seeds(run: RunRecord, pool: Iterable[RunRecord]) -> Group:
    """A run and, where it is evaluated, the newest run of each other seed that is alike and evaluated alike."""
    found = {run.params.get("seed"): run}
    for other in pool if is_evaluated(run) else ():
        if _same_model(other, run) and not differences(other, run) and _evaluated_alike(other, run):
            found.setdefault(other.params.get("seed"), other)
    return tuple(found.values())[:MOST_SEEDS]


def variants_of(base: RunRecord, pool: Sequence[RunRecord]) -> list[tuple[str, Group]]:
    """The runs that differ from a compared one in one parameter, by its name: a group for each value."""
    first: dict[tuple[str, str], RunRecord] = {}
    for run in sorted(pool, key=lambda run: not _evaluated_alike(run, base)):
        if _same_model(run, base) and len(fields := _changes(run, base)) == 1:
            first.setdefault((fields[0], run.params.get(fields[0], "")), run)
    kept = sorted(list(first.items())[:MOST_ABLATIONS], key=lambda item: item[0])
    return [(field, with_seeds(run, pool)) for (field, _), run in kept]


def _changes(run: RunRecord, base: RunRecord) -> list[str]:
    fields = differences(run, base)
    # By this schedule the epochs are a bound: a run that ends before it converges is an ablation that is not ranked.
    bounded = all(one.params.get("schedule") == "plateau" for one in (run, base))
    return [field for field in fields if field != "epochs"] if bounded and len(fields) > 1 else fields


def differences(run: RunRecord, base: RunRecord) -> list[str]:
    """The names of the parameters that two runs on the same data do not share, their seeds apart.

    What names the data is left out too, and so is the device, which is no part of the method.
    """
    keys = (run.params.keys() | base.params.keys()) - {"seed", "device", "data_dir", *DATA_FIELDS}
    return sorted(key for key in keys if not _equal(run.params.get(key), base.params.get(key)))


def _equal(one: str | None, other: str | None) -> bool:
    """Whether two values of a parameter are the same; `mlflow run -P lr=1e-3` logs it as it was typed."""
    try:
        return one == other or float(one or "") == float(other or "")
    except ValueError:
        return False


def _alike(run: RunRecord, anchor: RunRecord) -> tuple[dict[str, str], dict[str, str]]:
    """The parameters and tags of all runs of the model of ``run`` on the task of ``anchor``."""
    tags = ["data.digest"] + (["observation_model"] if is_latent(run) and is_latent(anchor) else [])
    return {"model": run.params["model"]}, {tag: anchor.tags[tag] for tag in tags}


def _same_task(run: RunRecord, anchor: RunRecord) -> bool:
    """Whether two runs saw the same data and, both being densities, the same observation model."""
    return _alike(run, anchor)[1].items() <= run.tags.items()


def _same_model(run: RunRecord, base: RunRecord) -> bool:
    return run.params["model"] == base.params["model"] and _same_task(run, base)


def _evaluated_alike(run: RunRecord, base: RunRecord) -> bool:
    """Whether a run's figures come from the same images by the same estimator; a classifier reads every image."""
    names = ("method", "tolerance", "samples", "images", "seed") if is_latent(base) else ()
    keys = [f"evaluation.{name}" for name in names]
    return is_evaluated(run) == is_evaluated(base) and all(run.tags.get(key) == base.tags.get(key) for key in keys)
