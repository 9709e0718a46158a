"""Choose finished runs of the tracking server and write the comparison report."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path

from elbolab.config.schema import CompareConfig
from elbolab.report import tables
from elbolab.report.collect import Comparison, Entry, Variant, differences, likelihoods, load, public, read_curves
from elbolab.report.page import render
from elbolab.report.plots import SPARE_SLOTS
from elbolab.report.sections.reproductions import newest_reproductions
from elbolab.report.sentences import find
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.mlflow_reader import RunRecord, is_evaluated, is_latent

ROLES = ("cnn", "vae", "latent_opt", "ppca")
# A page for people has an end, and so has what is read for it: the newest runs of a model are looked through, and of
# what is found so many seeds and ablations are kept.
OTHERS, MOST_SEEDS, MOST_ABLATIONS = 50, 10, 20

Group = tuple[RunRecord, ...]
"""Runs that differ in their seed only, first the one that is shown."""


def compare(config: CompareConfig) -> Path:
    """Write the report of the chosen runs to `config.out`, log it on a comparison run and return its page.

    Raises UserError when there is nothing to compare, or when the runs named are unknown, unfinished, no train runs,
    or of different splits of a dataset or observation models.
    """
    named = named_runs(config.run)
    chosen = by_dataset(named) if named else [latest_runs(name) for name in config.dataset or (None,)]
    # Two spellings of a dataset are one.
    once = {groups[0][0].tags["data.digest"]: groups for groups in chosen}
    comparisons = build(list(once.values()), more_seeds=not named)
    files = {f"{name}.csv": tables.csv(name, comparisons) for name in tables.COLUMNS}
    files |= render(comparisons, newest_reproductions())
    config.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (config.out / name).write_text(text, encoding="utf-8", newline="\n")
    keys = [(key, comparison.tag(key)) for key in ("data.name", "data.digest") for comparison in comparisons]
    keys += [(f"compare.{entry.label}", entry.run.id) for comparison in comparisons for entry in comparison.entries]
    tags = {key: ",".join(value for other, value in keys if other == key) for key, _ in keys}
    params = {"run": ",".join(config.run), "dataset": ",".join(config.dataset)}
    with tracking.start_run("compare", "compare", params, tags) as run:
        for name in sorted(files):
            run.log_artifact(config.out / name, "report")
    return config.out / "index.html"


def named_runs(ids: Sequence[str]) -> list[RunRecord]:
    """Return the finished train runs of these ids, newest first."""
    runs = [mlflow_reader.get_training(run_id) for run_id in dict.fromkeys(ids)]
    refuse_mixed([run for run in runs if is_latent(run)], "observation_model", "observation models")
    return sorted(runs, key=lambda run: (-run.start, run.id))


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
    """Return the runs named, those of each dataset together and grouped by seed; refuses two splits of one dataset."""
    datasets: dict[str, list[RunRecord]] = {}
    for run in named:
        datasets.setdefault(run.tags["data.name"], []).append(run)
    found = []
    for _, runs in sorted(datasets.items()):
        refuse_mixed(runs, "data.digest", "data")
        left, groups = sorted(runs, key=lambda run: (_rank(run.params["model"]), run.params["model"])), []
        while left:
            groups.append(with_seeds(left[0], left))
            left = [run for run in left if run not in groups[-1]]
        found.append(groups)
    return found


def latest_runs(dataset: str | None) -> list[Group]:
    """Return the latest run of each model that shares data and observation model with the latest of all.

    Raises UserError when there is no run of the dataset.
    """
    newest = mlflow_reader.newest_of_each("model", {"data.name": dataset} if dataset else {})
    if not newest:
        have = sorted({run.tags.get("data.name", "") for run in mlflow_reader.find_runs(limit=100)})
        of = f" on dataset {dataset} (there are runs on {', '.join(have)})" if dataset and have else ""
        raise UserError(f"no finished train run{of} in this experiment: train one first, e.g. `elbolab vae`")
    anchor = next((run for run in newest if is_latent(run)), newest[0])
    first: dict[str, RunRecord] = {}
    for run in newest:
        found = [run] if _same_task(run, anchor) else mlflow_reader.find_runs("train", *_alike(run, anchor), limit=1)
        first.update((one.params["model"], one) for one in found)
    ordered = sorted(first.values(), key=lambda run: (_rank(run.params["model"]), run.params["model"]))
    return [(run,) for run in ordered]


def others(base: RunRecord) -> list[RunRecord]:
    """Return the newest runs of a run's model on its task: where its other seeds and its ablations are looked for."""
    return mlflow_reader.find_runs("train", *_alike(base, base), limit=OTHERS)


def with_seeds(run: RunRecord, pool: Iterable[RunRecord]) -> Group:
    """Return a run and, where it is evaluated, the newest run of each other seed that is alike and evaluated alike."""
    found = {run.params.get("seed"): run}
    for other in pool:
        if (
            _same_model(other, run)
            and not differences(other, run)
            and is_evaluated(run)
            and _evaluated_alike(other, run)
        ):
            found.setdefault(other.params.get("seed"), other)
    return tuple(found.values())[:MOST_SEEDS]


def variants_of(base: Entry, pool: Sequence[RunRecord]) -> list[tuple[str, Group]]:
    """Return the runs that differ from the compared one in one parameter, by its name: a group for each value."""
    first: dict[tuple[str, str], RunRecord] = {}
    for run in sorted(pool, key=lambda run: not _evaluated_alike(run, base.run)):
        if _same_model(run, base.run) and len(fields := differences(run, base.run)) == 1:
            first.setdefault((fields[0], run.params.get(fields[0], "")), run)
    kept = sorted(list(first.items())[:MOST_ABLATIONS], key=lambda item: item[0])
    return [(field, with_seeds(run, pool)) for (field, _), run in kept]


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
    """Whether a run's figures come from the same images and samples; a classifier reads every image."""
    keys = [f"evaluation.{name}" for name in ("samples", "images", "seed")] if is_latent(base) else []
    return is_evaluated(run) == is_evaluated(base) and all(run.tags.get(key) == base.tags.get(key) for key in keys)


def _rank(model: str) -> int:
    """Place of a model in the report."""
    return ROLES.index(model) if model in ROLES else len(ROLES)


def build(chosen: Sequence[Sequence[Group]], more_seeds: bool) -> list[Comparison]:
    """Gather each dataset's runs, their evaluations and their ablations, and make tables and findings.

    The groups are as they are to be, or with ``more_seeds`` those of the server join the run of each.

    Raises UserError when two datasets' runs have different observation models.
    """
    shown = [group[0] for groups in chosen for group in groups]
    refuse_mixed([run for run in shown if is_latent(run)], "observation_model", "observation models")
    names = [[group[0].params["model"] for group in groups] for groups in chosen]
    labels = [
        [name if own.count(name) == 1 else f"{name} {group[0].id[:8]}" for name, group in zip(own, groups, strict=True)]
        for own, groups in zip(names, chosen, strict=True)
    ]
    slots = colours([label for own in labels for label in own])
    spare = [slot for slot in SPARE_SLOTS if slot not in slots.values()] or list(SPARE_SLOTS)
    comparisons = []
    for groups, own in zip(chosen, labels, strict=True):
        pools = [others(group[0]) for group in groups]
        whole = (
            [with_seeds(group[0], pool) for group, pool in zip(groups, pools, strict=True)] if more_seeds else groups
        )
        entries = [load(group, label, slots[label]) for group, label in zip(whole, own, strict=True)]
        comparisons.append(_compare(entries, pools, spare))
    return comparisons


def colours(labels: Iterable[str]) -> dict[str, int]:
    """Return the colour slot of each label, the same on every dataset; a role's own where it is free."""
    slots: dict[str, int] = {}
    spare = cycle(SPARE_SLOTS)
    for label in dict.fromkeys(labels):
        rank = _rank(label.split()[0])
        slots[label] = next(spare) if rank in (len(ROLES), *slots.values()) else rank
    return slots


def _compare(entries: list[Entry], pools: Sequence[Sequence[RunRecord]], spare: Sequence[int]) -> Comparison:
    """Gather what one dataset's page shows; its ablations take the colours that are spare."""
    variants: list[Variant] = []
    for base, pool in zip(entries, pools, strict=True):
        for field, group in variants_of(base, pool) if base.latent else []:
            label = f"{base.label} {field} {public(group[0].params.get(field, 'unset'))}"
            place = sum(variant.base is base and variant.field == field for variant in variants)
            entry = Entry(label, spare[place % len(spare)], group, likelihoods(group))
            variants.append(Variant(base, field, entry))
    runs: dict[str, tuple[RunRecord, Entry]] = {}
    for entry in [*entries, *(variant.entry for variant in variants)]:
        for run in entry.runs:
            runs.setdefault(run.id, (run, entry))
    curves = read_curves(runs)
    rows = {
        "summary": tables.summary_table(entries),
        "seeds": tables.seeds_table(entries),
        "pairs": tables.pairs_table(entries),
        "digits": tables.digits_table(entries),
        "images": tables.images_table(entries),
        "ablations": tables.ablations_table(entries, variants, curves),
        "bounds": tables.bounds_table(entries),
        "gap": tables.gap_table(entries),
        "representation": tables.representation_table(entries),
        "fidelity": tables.fidelity_table(entries),
        "curves": tables.curves_table(curves, {run: entry.label for run, (_, entry) in runs.items()}),
        "runs": tables.runs_table(run for run, _ in runs.values()),
    }
    missing = [name for name in ROLES if name not in {entry.model for entry in entries}]
    return Comparison(entries, missing, variants, runs, curves, rows, find(entries, rows, curves))
