"""Choose finished runs of the tracking server and write the comparison report."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from elbolab import tracker
from elbolab.config import CompareConfig
from elbolab.errors import UserError
from elbolab.models import MODELS
from elbolab.report import tables
from elbolab.report.entries import Comparison, Entry, differences, is_latent, load, read_curves
from elbolab.report.findings import find
from elbolab.report.page import render
from elbolab.report.sections import STARTS
from elbolab.tracker import RunRecord

ROLES = ("cnn", "vae", "latent_opt", "ppca")
STARTS_READ = 100


def compare(config: CompareConfig) -> Path:
    """Write the report of the chosen runs to `config.out`, log it on a comparison run and return its page.

    Raises UserError when there is nothing to compare, or when the runs named are unknown, unfinished, no train runs,
    or of different data or observation models.
    """
    runs = named_runs(config.run) if config.run else latest_runs(config.dataset)
    comparison = build(runs, other_starts(runs))
    files = {f"{name}.csv": tables.csv(name, rows) for name, rows in comparison.tables.items()}
    files |= render(comparison)
    config.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (config.out / name).write_text(text, encoding="utf-8", newline="\n")
    first = comparison.entries[0].run
    tags = {key: first.tags[key] for key in ("data.name", "data.digest") if key in first.tags}
    tags |= {f"compare.{entry.label}": entry.run.id for entry in comparison.entries}
    params = {"run": ",".join(config.run), "dataset": config.dataset or ""}
    with tracker.run("compare", "compare", params, tags) as run:
        for name in sorted(files):
            run.log_artifact(config.out / name, "report")
    return config.out / "index.html"


def named_runs(ids: Sequence[str]) -> list[RunRecord]:
    """Return the finished train runs of these ids, refused together unless they share data and observation model."""
    runs = [tracker.get_run(run_id) for run_id in dict.fromkeys(ids)]
    for run in runs:
        if (kind := run.tags.get("elbolab.kind")) != "train":
            raise UserError(f"run {run.id} is no train run (elbolab.kind is {kind}): name runs of a model's training")
        if run.status != "FINISHED":
            raise UserError(f"run {run.id} is {run.status}: only FINISHED runs are compared")
    refuse_mixed(runs, "data.digest", "data")
    refuse_mixed([run for run in runs if is_latent(run)], "observation_model", "observation models")
    return sorted(runs, key=lambda run: (_rank(run.params["model"]), run.params["model"], run.start, run.id))


def refuse_mixed(runs: Sequence[RunRecord], tag: str, what: str) -> None:
    """Raise UserError naming both runs and both values when a tag differs from the first run's."""
    for run in runs[1:]:
        one, other = runs[0].tags.get(tag), run.tags.get(tag)
        if one != other:
            raise UserError(
                f"runs of different {what} cannot be compared: {tag} is `{one}` in run {runs[0].id} "
                f"and `{other}` in run {run.id}"
            )


def latest_runs(dataset: str | None) -> list[RunRecord]:
    """Return the latest finished run of each model that shares data and observation model with the latest of all."""
    chosen = {"data.name": dataset} if dataset else {}
    newest = [run for name in MODELS for run in tracker.find_runs(params={"model": name}, tags=chosen, limit=1)]
    newest.sort(key=lambda run: -run.start)
    if not newest:
        have = sorted({run.tags.get("data.name", "") for run in tracker.find_runs(limit=100)})
        of = f" on dataset {dataset} (there are runs on {', '.join(have)})" if dataset and have else ""
        raise UserError(f"no finished train run{of} in this experiment: train one first, e.g. `elbolab vae`")
    anchor = next((run for run in newest if is_latent(run)), newest[0])
    first: dict[str, RunRecord] = {}
    for run in newest:
        found = [run] if _same_task(run, anchor) else tracker.find_runs("train", *_alike(run, anchor), limit=1)
        first.update((one.params["model"], one) for one in found)
    return [first[name] for name in sorted(first, key=lambda name: (_rank(name), name))]


def other_starts(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the newest runs of each initialisation of latent optimisation on the task of the compared one."""
    base = next((run for run in runs if "latent_init" in run.params), None)
    if base is None:
        return []
    params, tags = _alike(base, base)
    found = (tracker.find_runs("train", {**params, "latent_init": start}, tags, STARTS_READ) for start in STARTS)
    return [run for runs in found for run in runs]


def _alike(run: RunRecord, anchor: RunRecord) -> tuple[dict[str, str], dict[str, str]]:
    """The parameters and tags of all runs of the model of ``run`` on the task of ``anchor``."""
    tags = ["data.digest"] + (["observation_model"] if is_latent(run) and is_latent(anchor) else [])
    return {"model": run.params["model"]}, {tag: anchor.tags[tag] for tag in tags}


def _same_task(run: RunRecord, anchor: RunRecord) -> bool:
    """Whether two runs saw the same data and, both being densities, the same observation model."""
    return _alike(run, anchor)[1].items() <= run.tags.items()


def _rank(model: str) -> int:
    """Place of a model in the report."""
    return ROLES.index(model) if model in ROLES else len(ROLES)


def build(runs: Sequence[RunRecord], pool: Sequence[RunRecord]) -> Comparison:
    """Gather the runs' evaluations and make tables and findings; `pool` is searched for other initialisations."""
    names, ids = [run.params["model"] for run in runs], {run.id for run in runs}
    spare = iter(range(len(ROLES) + 1, 99))
    entries = []
    for run, name in zip(runs, names, strict=True):
        taken = name not in ROLES or any(entry.model == name for entry in entries)
        label = name if names.count(name) == 1 else f"{name} {run.id[:8]}"
        entries.append(load(run, label, next(spare) if taken else _rank(name)))
    starts = initialisations(entries, pool)
    used = {run.id: run for run in [*runs, *starts]}
    labels = {run.id: f"{run.params['model']} {run.params['latent_init']}" for run in starts}
    labels = {entry.run.id: entry.label for entry in entries} | {k: v for k, v in labels.items() if k not in ids}
    curves = read_curves(used)
    rows = {
        "summary": tables.summary_table(entries),
        "digits": tables.digits_table(entries),
        "images": tables.images_table(entries),
        "curves": tables.curves_table(curves, labels),
        "initialisation": tables.starts_table(starts, curves),
        "runs": tables.runs_table(used.values()),
    }
    missing = [name for name in ROLES if name not in names]
    return Comparison(entries, missing, starts, curves, rows, find(entries, rows, curves))


def initialisations(entries: Sequence[Entry], pool: Iterable[RunRecord]) -> list[RunRecord]:
    """Return a run for each `latent_init`: the one nearest in configuration to the compared one, then the latest."""
    base = next((entry.run for entry in entries if "latent_init" in entry.run.params), None)
    if base is None:
        return []
    best: dict[str, RunRecord] = {}
    same = (run for run in pool if run.params.get("model") == base.params["model"] and _same_task(run, base))
    compared = {entry.run.id for entry in entries}
    for run in sorted(same, key=lambda run: (run.id not in compared, len(differences(run, base)), -run.start)):
        best.setdefault(run.params["latent_init"], run)
    best[base.params["latent_init"]] = base
    return [best[name] for name in sorted(best)]
