"""The job of the report: choose runs, gather what they left, write page and tables, and log them on a run."""

from collections.abc import Sequence
from pathlib import Path

from elbolab.config.schema import CompareConfig
from elbolab.report import select, tables
from elbolab.report.collect import Comparison, Entry, Variant, likelihoods, load, populations, public, read_curves
from elbolab.report.page import render
from elbolab.report.plots import SLOTS, colours
from elbolab.report.sections.reproductions import newest_reproductions
from elbolab.tracking import artifacts
from elbolab.tracking import run as tracking
from elbolab.tracking.mlflow_reader import RunRecord, is_latent


def compare(config: CompareConfig) -> Path:
    """Write the report of the chosen runs to `config.out`, log it on a comparison run and return its page.

    Raises UserError when there is nothing to compare, or when the runs named are unknown, unfinished, no train runs,
    or of different splits of a dataset or observation models.
    """
    named = select.named_runs(config.run)
    chosen = select.by_dataset(named) if named else [select.latest_runs(name) for name in config.dataset or (None,)]
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


def build(chosen: Sequence[Sequence[select.Group]], more_seeds: bool) -> list[Comparison]:
    """Gather each dataset's runs, their evaluations and their ablations, and make the tables.

    The groups are as they are to be, or with ``more_seeds`` those of the server join the run of each. Raises UserError
    when two datasets' runs have different observation models.
    """
    shown = [group[0] for groups in chosen for group in groups]
    select.refuse_mixed([run for run in shown if is_latent(run)], "observation_model", "observation models")
    labels = [select.labels_of([group[0] for group in groups]) for groups in chosen]
    slots = colours([label for own in labels for label in own])
    spare = [slot for slot in SLOTS if slot not in slots.values()] or list(SLOTS)
    comparisons = []
    for groups, own in zip(chosen, labels, strict=True):
        entries, variants = [], []
        for group, label in zip(groups, own, strict=True):
            pool = select.others(group[0])
            whole = select.with_seeds(group[0], pool) if more_seeds else group
            entries.append(load(whole, label, slots[label]))
            variants += _variants(entries[-1], pool, spare) if entries[-1].latent else []
        runs: dict[str, tuple[RunRecord, Entry]] = {}
        for entry in [*entries, *(variant.entry for variant in variants)]:
            for run in entry.runs:
                runs.setdefault(run.id, (run, entry))
        curves = read_curves(runs)
        made = tables.make(entries, variants, curves, runs)
        comparisons.append(Comparison(entries, variants, runs, curves, made))
    return comparisons


def _variants(base: Entry, pool: Sequence[RunRecord], spare: Sequence[int]) -> list[Variant]:
    """The ablations of an entry, in the colours that are spare."""
    variants: list[Variant] = []
    for field, group in select.variants_of(base.run, pool):
        label = f"{base.label} {field} {public(group[0].params.get(field, 'unset'))}"
        slot = spare[sum(variant.field == field for variant in variants) % len(spare)]
        pictures = {key: artifacts.step_images(group[0].id, key) for key in ("reconstructions_val", "samples")}
        entry = Entry(label, slot, group, likelihoods(group), populations(group), pictures=pictures)
        variants.append(Variant(base, field, entry))
    return variants
