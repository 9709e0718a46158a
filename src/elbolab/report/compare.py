"""The job of the report: choose runs, gather what they left, write page and tables, and log them on a run."""

import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pandas as pd

from elbolab.config.schema import CompareConfig
from elbolab.report import select, tables
from elbolab.report.collect import Comparison, Entry, Variant
from elbolab.report.fetch import Lost, load, read_curves
from elbolab.report.page import PAGES, render
from elbolab.report.plots import SLOTS, colours
from elbolab.report.sections.reproductions import newest_reproductions
from elbolab.support.errors import UserError
from elbolab.support.paths import public
from elbolab.tracking import run as tracking
from elbolab.tracking.keys import COMPARED
from elbolab.tracking.mlflow_reader import RunRecord, is_latent
from elbolab.tracking.run_names import find_training


def compare(config: CompareConfig) -> Path:
    """Write the report of the chosen runs to `config.out`, log it on a comparison run and return its page.

    Standard error says which data and runs it took. A report of other runs that is there already is kept in a folder
    beside the new one. Raises UserError when there is nothing to compare, when the runs named are unknown, unfinished,
    no train runs, or of different splits of a dataset or observation models, or when nothing can be written there.
    """
    named = select.once_each(map(find_training, config.run))
    chosen = select.by_dataset(named) if named else [select.latest_runs(name) for name in config.dataset or (None,)]
    # Two spellings of a dataset are one.
    once = {groups[0][0].tags["data.digest"]: groups for groups in chosen}
    comparisons = build(list(once.values()), more_seeds=not named)
    files = {f"{name}.csv": tables.csv(name, comparisons) for name in tables.COLUMNS}
    files |= render(comparisons, newest_reproductions())
    for comparison in comparisons:
        print(f"elbolab: {_said(comparison)}", file=sys.stderr)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        _keep_report(config.out, {run for comparison in comparisons for run in comparison.runs})
        for name, text in files.items():
            (config.out / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"out={str(config.out)!r} cannot be written: {error}; name another folder by --out") from error
    keys = [(key, comparison.tag(key)) for key in ("data.name", "data.digest") for comparison in comparisons]
    entries = [entry for comparison in comparisons for entry in comparison.entries]
    keys += [(f"{COMPARED}{entry.label}", ",".join(run.id for run in entry.runs)) for entry in entries]
    tags = {key: ",".join(value for other, value in keys if other == key) for key, _ in keys}
    params = {"run": ",".join(config.run), "dataset": ",".join(config.dataset)}
    with tracking.start_run("compare", "compare", params, tags) as run:
        for name in sorted(files):
            run.log_artifact(config.out / name, "report")
    return config.out / "index.html"


def _said(comparison: Comparison) -> str:
    """Which data and runs a comparison took."""
    images = comparison.entries[0].run.train_images
    data = f"{comparison.tag('data.name')} ({f'{images:,} training images, ' if images else ''}digest "
    data += f"{comparison.tag('data.digest')[:8]})"
    models = []
    for entry in comparison.entries:
        label = f"{entry.label.removesuffix(f' {entry.run.id[:8]}')} {entry.run.id[:8]}"
        more = len(entry.runs) - 1
        models.append(label + (f" and {more} more seed{'s' if more > 1 else ''}" if more else ""))
    return f"compared on {data}: {', '.join(models)}"


def _keep_report(folder: Path, runs: set[str]) -> None:
    """Move a report that shows others than these ``runs`` into a folder of its own beside what takes its place."""
    names = [name for name in (*PAGES, *(f"{name}.csv" for name in tables.COLUMNS)) if (folder / name).exists()]
    try:
        before = set(pd.read_csv(folder / "runs.csv")["run"])
    except (OSError, ValueError, LookupError):
        before = {"unknown"} if names else set()
    if before <= runs:
        return
    kept = next(one for place in count(1) if not (one := folder / f"earlier-{place}").exists())
    kept.mkdir()
    for name in names:
        (folder / name).rename(kept / name)
    print(f"elbolab: the report of other runs that was in {folder} is kept in {kept}", file=sys.stderr)


def build(chosen: Sequence[Sequence[select.Group]], more_seeds: bool) -> list[Comparison]:
    """Gather each dataset's runs, their evaluations and their ablations, and make the tables.

    The groups are as they are to be, or with ``more_seeds`` those of the server join the run of each, and where its
    files are lost the next run of its model takes its place. Raises UserError when two datasets' runs have different
    observation models, or nothing is left.
    """
    shown = [group[0] for groups in chosen for group in groups]
    select.refuse_mixed([run for run in shown if is_latent(run)], "observation_model", "observation models")
    labels = [select.labels_of([group[0] for group in groups]) for groups in chosen]
    slots = colours([label for own in labels for label in own])
    spare = [slot for slot in SLOTS if slot not in slots.values()] or list(SLOTS)
    comparisons = []
    for groups, own in zip(chosen, labels, strict=True):
        entries: list[Entry] = []
        variants: list[Variant] = []
        lost: Lost = {}
        for group, label in zip(groups, own, strict=True):
            pool = select.others(group[0])
            entry = (
                _newest(group[0], pool, label, slots[label], lost) if more_seeds else load(group, label, slots[label])
            )
            if entry is not None:
                entries.append(entry)
                variants += _variants(entry, pool, spare, lost) if entry.latent else []
        if not entries:
            raise UserError(f"all runs of {', '.join(own)} have lost their files; evaluate them again, or train others")
        runs: dict[str, tuple[RunRecord, Entry]] = {}
        for entry in [*entries, *(variant.entry for variant in variants)]:
            for run in entry.runs:
                runs.setdefault(run.id, (run, entry))
        curves = read_curves(runs)
        made = tables.make(entries, variants, curves, runs)
        comparisons.append(Comparison(entries, variants, runs, curves, made, lost))
    return comparisons


def _newest(newest: RunRecord, pool: Sequence[RunRecord], label: str, slot: int, lost: Lost) -> Entry | None:
    """The newest run of a model whose files are there, with its other seeds; None where there is no such run."""
    for run in (newest, *pool):
        there = [other for other in pool if other.id not in lost]
        if run.id not in lost and (entry := load(select.with_seeds(run, there), label, slot, lost)) is not None:
            return entry
    return None


def _variants(base: Entry, pool: Sequence[RunRecord], spare: Sequence[int], lost: Lost) -> list[Variant]:
    """The ablations of an entry, in the colours that are spare."""
    variants: list[Variant] = []
    for field, group in select.variants_of(base.run, [run for run in pool if run.id not in lost]):
        label = f"{base.label} {field} {public(group[0].params.get(field, 'unset'))}"
        slot = spare[sum(variant.field == field for variant in variants) % len(spare)]
        if (entry := load(group, label, slot, lost, variant=True)) is not None:
            variants.append(Variant(base, field, entry))
    return variants
