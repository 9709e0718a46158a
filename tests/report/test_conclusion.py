"""What a report's page concludes, what it ranks and what it does not, and what stands under its daggers."""

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from invented_runs import Store, fill, rows_of, served, signed, spread
from scipy.stats import t as student_t

from elbolab.config.schema import EvaluateConfig
from elbolab.experiment.evaluate import protocol
from elbolab.report.collect import Comparison, Entry
from elbolab.report.commands import evaluate_surer
from elbolab.report.compare import CompareConfig, build, compare
from elbolab.report.differences import apart
from elbolab.report.page import render
from elbolab.report.sections.conclusion import conclusion_blocks
from elbolab.report.select import with_seeds
from elbolab.tracking import mlflow_reader
from elbolab.tracking.keys import EVALUATION_PROTOCOL
from elbolab.tracking.mlflow_reader import RunRecord

SURE = {"test/unreliable": 0.0, "train/unreliable": 0.0}


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Iterator[dict[str, str]]:
    """The runs of a complete set by model, on a store of this module's own."""
    folder = tmp_path_factory.mktemp("conclusion")
    with served(folder, tables) as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "conclusion")
        yield fill(Store(folder, "conclusion"))


def compared(*runs: RunRecord) -> Comparison:
    (comparison,) = build([[(run,) for run in runs]], more_seeds=False)
    return comparison


def changed(run: str, metrics: dict[str, float] | None = None, **tags: str) -> RunRecord:
    """A run of the store with some of its metrics and tags replaced."""
    record = mlflow_reader.get_run(run)
    return replace(record, metrics=record.metrics | (metrics or {}), tags=record.tags | tags)


def said(comparison: Comparison) -> list[str]:
    return [sentence.text for block in conclusion_blocks(comparison) for sentence in block.sentences]


def test_a_page_begins_with_the_best_of_the_converged_models_and_what_each_cost(ids: dict[str, str]) -> None:
    comparison = compared(*(changed(ids[model], SURE) for model in ("cnn", "vae", "latent_opt", "ppca")))
    best, cost = said(comparison)
    row = next(row for row in comparison.tables["pairs"] if (row["model"], row["split"]) == ("latent_opt", "test"))
    half = (row["high"] - row["low"]) / 2
    interval = f"95% interval {signed(-row['high'], half)} to {signed(-row['low'], half)}, over 20 images"
    assert -row["high"] > 0.5
    assert best == (
        f"Of the 3 models that have converged, vae explains test images best, {signed(-row['mean'], half)} nats of "
        f"log p(x) above latent_opt ({interval}); this is larger than latent_opt may be estimated too low, 0.50 nats "
        "at most."
    )
    assert cost == "Training took vae 12 s and 250 steps, latent_opt 12 s and 250 steps."
    pages = render([comparison])
    first = re.search(r"<h2>Summary</h2>(.*?)<div class=\"cards\">", pages["index.html"], re.DOTALL)
    assert first is not None
    text = html.unescape(re.sub("<[^>]*>", "", first[1]))
    assert text.index(best) < text.index(cost)
    assert pages["report.md"].index(best) < pages["report.md"].index("| Model |")


@pytest.mark.parametrize(
    ("bias", "verdict"),
    [
        ({"simulated/bias": 3.0}, "this is not larger than latent_opt may be estimated too low, 3.2 nats at most"),
        ({"simulated/bias": 1.0, "simulated/bias_se": 1.0}, "this is not larger than latent_opt may be"),
        ({"simulated/bias": float("nan")}, "how far the estimate of latent_opt is too low was not measured, so which"),
        ({"test/unreliable": 1.0}, "the estimates are unreliable, so which is better stays open"),
    ],
)
def test_a_lead_that_the_bias_of_the_model_behind_may_explain_is_said_to_be_open(
    ids: dict[str, str], bias: dict[str, float], verdict: str
) -> None:
    runs = [changed(ids["vae"], SURE), changed(ids["latent_opt"], SURE | bias)]
    best, _ = said(compared(*runs))
    assert verdict in best
    assert ("\u2020 nats" in best) == ("unreliable" in verdict)
    # The bias of the leader only adds to its lead.
    best, _ = said(compared(changed(ids["vae"], SURE | {"simulated/bias": 50.0}), changed(ids["latent_opt"], SURE)))
    assert "this is larger than" in best


def test_a_lead_over_an_exact_model_survives_any_bias(ids: dict[str, str]) -> None:
    unmeasured = changed(ids["latent_opt"], SURE | {"simulated/bias": float("nan")})
    best, _ = said(compared(unmeasured, changed(ids["ppca"])))
    assert best.endswith("; no bias of the estimates turns this round, since log p(x) of ppca is exact.")


def test_the_best_is_above_every_other_model_for_sure(ids: dict[str, str]) -> None:
    comparison = compared(*(changed(ids[model], SURE) for model in ("vae", "latent_opt", "ppca")))
    assert "vae explains test images best" in said(comparison)[0]
    row = next(row for row in comparison.tables["pairs"] if (row["model"], row["other"]) == ("ppca", "vae"))
    # Far behind on average, but by how much is hardly known.
    row |= {"mean": -19.0, "low": -40.0, "high": 2.0}
    assert said(comparison)[0] == (
        "Test log p(x) does not tell vae and ppca apart: vae is 19 nats above ppca (95% interval "
        "\u22122 to 40, over 20 images)."
    )


def test_an_interval_around_zero_ranks_nothing(ids: dict[str, str]) -> None:
    comparison = compared(*(changed(ids[model], SURE) for model in ("vae", "latent_opt")))
    for row in comparison.tables["pairs"]:
        row |= {"mean": -0.1, "low": -0.5, "high": 0.3}
    best, _ = said(comparison)
    assert best == (
        f"Test log p(x) does not tell vae and latent_opt apart: vae is 0.10 nats above latent_opt (95% interval "
        f"{signed(-0.3)} to 0.50, over 20 images)."
    )


@pytest.mark.parametrize(("changes", "both"), [({"simulated/bias": 50.0}, True), ({"test/unreliable": 1.0}, False)])
def test_two_that_cannot_be_told_apart_may_both_be_above_a_third(
    ids: dict[str, str], changes: dict[str, float], both: bool
) -> None:
    # The bias of those ahead only adds to their lead over an exact model.
    ahead = [changed(ids[model], SURE | changes) for model in ("vae", "latent_opt")]
    comparison = compared(*ahead, changed(ids["ppca"]))
    row = next(row for row in comparison.tables["pairs"] if {row["model"], row["other"]} == {"vae", "latent_opt"})
    row |= {"mean": -0.1, "low": -0.5, "high": 0.3}
    assert "does not tell vae and latent_opt apart" in said(comparison)[0]
    assert said(comparison)[0].endswith(". Both are above ppca.") == both


@pytest.mark.parametrize(("tag", "state"), [("false", "not converged"), ("", "not known to have converged")])
def test_a_model_that_has_not_converged_is_ranked_nowhere(
    ids: dict[str, str], tag: str, state: str, tmp_path: Path
) -> None:
    runs = [mlflow_reader.get_run(ids[model]) for model in ("vae", "latent_opt", "ppca")]
    tags = {key: value for key, value in runs[1].tags.items() if key != "converged"} | (
        {"converged": tag} if tag else {}
    )
    comparison = compared(runs[0], replace(runs[1], tags=tags), runs[2])
    best, _ = said(comparison)
    assert "vae explains test images best" in best
    assert "latent_opt" not in best
    pages = render([comparison])
    (pairs,) = [table for table in rows_of(pages["index.html"]) if "Minus" in table[0]]
    for row in pairs[1:]:
        numbers = row[7:]
        assert (numbers == [state, *["\u2013"] * 3]) == ("latent_opt" in (row[0], row[2])), row
    # A number of two models stands nowhere else: not in a sentence, not under fitted posteriors.
    notes = re.findall(r"<li>(.*?)</li>", pages["index.html"])
    assert not [note for note in notes if "latent_opt" in note and "vae" in note]
    assert f"test log p(x), nats, {'unreliable, ' * False}{state}" in pages["index.html"]
    assert f"latent_opt, {state} " in pages["index.html"]  # in the figure
    (notice,) = re.findall(r'<p class="missing"><b>Not converged.</b>(.*?)</p>', pages["index.html"])
    assert f"<code>elbolab latent_opt --resume {ids['latent_opt']} --new-run --schedule plateau" in notice
    (front,) = [table for table in rows_of(pages["index.html"]) if table[0][-1] == "Converged"]
    answers = {row[0]: row[-1] for row in front[1:]}
    assert answers["vae"] == "yes"
    assert answers["latent_opt"] == ("no" if tag else "not known")
    assert answers["ppca"] == "closed form"


def test_one_converged_model_alone_is_not_ranked(ids: dict[str, str]) -> None:
    runs = [changed(ids["vae"], converged="false"), changed(ids["latent_opt"])]
    assert said(compared(*runs))[0] == "Only latent_opt of these models is known to have converged, so none is ranked."
    runs[1] = changed(ids["latent_opt"], converged="false")
    assert said(compared(*runs))[0] == "None of these models is known to have converged, so none is ranked."
    # Of one model there is nothing to rank.
    assert [text.partition(" took")[0] for text in said(compared(runs[0]))] == ["Training"]


def test_worse_than_a_constant_image_is_said_first(ids: dict[str, str]) -> None:
    mean, error = (mlflow_reader.get_run(ids["vae"]).metrics[f"test/{name}"] for name in ("log_px", "log_px_se"))
    # Errors and bias may explain so much.
    slack = 2 * error + 0.5
    for above, is_said in ((slack - 0.01, False), (slack + 0.01, True)):
        flat = {"test/log_px_constant": mean + above}
        first, *_ = said(compared(changed(ids["vae"], SURE | flat, converged="false"), changed(ids["ppca"])))
        text = "vae, not converged, is worse than a constant image"
        numbers = f" ({spread(mean, error)} nats of test log p(x), against {signed(mean + above)})."
        assert (first == text + numbers) == is_said
    flat = {"test/log_px_constant": 0.0, "test/unreliable": 1.0}
    first, *rest = said(compared(changed(ids["vae"], flat), changed(ids["latent_opt"], SURE)))
    assert first.startswith("vae is not shown to be better than a constant image (")
    assert len(rest) == 2


def entry(name: str, values: np.ndarray, closed: bool = False) -> Entry:
    """A model whose runs, one a seed, have values (seeds, images) for log p(x)."""
    runs = tuple(
        RunRecord(f"{name}{seed}", name, "0", "FINISHED", 0, 1.0, {"model": name}, {"evaluation.posterior": "encoder"},
                  {"test/log_px": own.mean()} | ({} if closed else {"train/lr": 1.0}), "", None)
        for seed, own in enumerate(values)
    )  # fmt: skip
    names = {"split": "test", "posterior": "encoder", "std_err": 0.1}
    frames = tuple(pd.DataFrame({"index": range(len(own)), "log_px": own} | names) for own in values)
    return Entry(name, 0, runs, frames)


def test_the_interval_over_images_and_seeds_is_that_of_added_variances() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(1, 2, (3, 40)), random.normal(0, 2, (2, 40))
    found = apart(entry("one", one), entry("other", other), "test")
    alone = apart(entry("one", one.mean(0, keepdims=True)), entry("other", other.mean(0, keepdims=True)), "test")
    assert (found["seeds"], alone["seeds"]) == (2, 0)
    assert found["mean"] == pytest.approx(one.mean() - other.mean())
    variances = np.array(
        [
            ((alone["high"] - alone["low"]) / (2 * student_t.ppf(0.975, np.inf))) ** 2,
            one.mean(1).var(ddof=1) / 3,
            other.mean(1).var(ddof=1) / 2,
        ]
    )
    freedom = variances.sum() ** 2 / (variances**2 / [39, 2, 1]).sum()
    half = student_t.ppf(0.975, freedom) * np.sqrt(variances.sum())
    assert (found["low"], found["high"]) == pytest.approx((found["mean"] - half, found["mean"] + half))
    # A closed form has no seeds; a model of one training gives no interval over them.
    assert apart(entry("one", one), entry("exact", other[:1], closed=True), "test")["seeds"] == 3
    assert apart(entry("one", one), entry("other", other[:1]), "test")["seeds"] == 0


def test_the_interval_over_images_and_seeds_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    held, over_images = 0, 0
    for _ in range(150):
        images, seeds, noise = random.normal(0, 10, 50), random.normal(0, 1, (2, 3, 1)), random.normal(0, 1, (2, 3, 50))
        own = images + seeds + noise + np.array([0.5, 0]).reshape(2, 1, 1)
        found = apart(entry("one", own[0]), entry("other", own[1]), "test")
        held += found["low"] <= 0.5 <= found["high"]
        one, other = (entry("mean", values.mean(0, keepdims=True)) for values in own)
        found = apart(one, other, "test")
        over_images += found["low"] <= 0.5 <= found["high"]
    assert held / 150 >= 0.92
    # Over images alone it is of these trainings and no others.
    assert over_images / 150 < 0.6


def test_the_decoder_of_an_encoder_has_a_row_under_fitted_posteriors(ids: dict[str, str], tmp_path: Path) -> None:
    vae, latent_opt = (mlflow_reader.get_run(ids[model]) for model in ("vae", "latent_opt"))
    comparison = compared(vae, latent_opt)
    pages = render([comparison])
    (front,) = [table for table in rows_of(pages["index.html"]) if table[0][-1] == "Converged"]
    rows = {row[0]: dict(zip(front[0], row, strict=True)) for row in front[1:]}
    row = rows["vae, fitted posteriors"]
    elbo = vae.metrics["test/fitted_posterior_elbo"]
    assert elbo == pytest.approx(vae.metrics["test/log_px"] - 6)
    assert (row["Run"], row["Test ELBO"]) == (ids["vae"][:8], signed(elbo))
    assert (row["Test log p(x)"], row["Class kept"]) == ("\u2013", "97.0 % (90.0 to 100.0)")
    summary = {(one["model"], one["split"], one["posterior"]): one for one in comparison.tables["summary"]}
    assert summary["vae", "test", "fitted"]["accuracy_reconstruction"] == 0.96
    assert "log_px" not in summary["vae", "test", "fitted"]
    # Its fitted rows are of no other number: not of log p(x), nor of the differences in it.
    assert summary["vae", "test", "encoder"]["images"] == 20
    assert comparison.tables["pairs"][0]["images"] == 20
    ours, theirs = (one.images("test", "elbo", "fitted") for one in comparison.latents)
    gap = signed(float(np.mean([ours[index] - theirs[index] for index in ours])))
    said = f"With posteriors fitted to the same 20 test images the ELBO of vae is {gap} nats above that of latent_opt"
    assert said in pages["index.html"]
    assert said in pages["report.md"]
    # Not of one that has not converged, and of no evaluation that did not measure it.
    short = compared(changed(ids["vae"], converged="false"), latent_opt)
    assert "With posteriors fitted" not in render([short])["index.html"]
    old = {key: value for key, value in vae.metrics.items() if "fitted" not in key}
    assert "fitted posteriors" not in render([compared(replace(vae, metrics=old))])["index.html"].lower()


def test_one_footnote_explains_all_daggers_with_what_is_to_be_done(ids: dict[str, str]) -> None:
    runs = [mlflow_reader.get_run(ids[model]) for model in ("vae", "latent_opt")]
    pages = render([compared(*runs)])
    for name in ("index.html", "report.md"):
        page = pages[name]
        assert page.count("\u2020") > 10
        assert page.count("misses the tolerance, or its weights") == 1
        assert f"elbolab evaluate {ids['vae']} --method auto" in page
    assert pages["tables.tex"].count("misses the tolerance") > 1  # tables stand alone in a paper
    assert '<a href="#unreliable">' in pages["index.html"]
    sure = render([compared(changed(ids["ppca"]))])
    assert not [name for name, page in sure.items() if "\u2020" in page or "#unreliable" in page]


@pytest.mark.parametrize("name", ["method", "tolerance", "samples", "images", "seed"])
def test_seeds_that_were_not_evaluated_alike_are_not_averaged(ids: dict[str, str], name: str) -> None:
    one = changed(ids["vae"])
    other = replace(one, id="0" * 32, params=one.params | {"seed": "1"})
    assert with_seeds(one, [one, other]) == (one, other)
    unlike = replace(other, tags=other.tags | {f"evaluation.{name}": "7"})
    assert with_seeds(one, [one, unlike]) == (one,)


def test_what_is_evaluated_again_is_evaluated_alike_with_twice_the_budget(ids: dict[str, str]) -> None:
    for budget in (500, EvaluateConfig().budget):
        config = EvaluateConfig(tolerance=0.1, budget=budget, gap_images=20, images=50)
        command = evaluate_surer(changed(ids["vae"], {}, **{EVALUATION_PROTOCOL: protocol(config)})).split()
        assert command[:3] == ["elbolab", "evaluate", ids["vae"]]
        flags = {name.removeprefix("--").replace("-", "_"): value for name, value in pairwise(command[3:])}
        assert EvaluateConfig.parse({name: flags[name] for name in flags if name in EvaluateConfig.model_fields}) == (
            config.model_copy(update={"budget": 2 * budget})
        )


def test_starts_have_their_log_px_and_pictures_and_no_rank_before_they_converge(
    ids: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "starts")
    store = Store(tmp_path, "starts")
    starts = {"normal": "false", "zeros": "true", "pca": "true"}
    runs = {
        start: store.train("latent_opt", latent_init=start, sigma=0.4, converged=converged)
        for start, converged in starts.items()
    }
    for place, run in enumerate(runs.values()):
        store.evaluate(run, "latent_opt", shift=place - 3)
    page = compare(CompareConfig(out=tmp_path / "report")).read_text()
    section = page[page.index('<section id="ablations">') : page.index('<section id="runs">')]
    (table,) = [table for table in rows_of(f"<section{section}") if "Difference" in table[0]]
    rows = {row[1]: dict(zip(table[0], row, strict=True)) for row in table[1:]}
    for start in ("normal", "zeros"):
        found = store.client.get_run(runs[start]).data.metrics
        assert rows[start]["Test log p(x)"].startswith(spread(found["test/log_px"], found["test/log_px_se"]))
    assert (rows["normal"]["Difference"], rows["normal"]["95% interval"]) == ("not converged", "\u2013")
    assert rows["zeros"]["Difference"].startswith("\u2212")
    said = re.search(r"best validation ELBO by latent_init: (.*?)\.<", section)
    assert re.search(r"nats with normal \(not converged\)", section), said
    assert not re.search(r"nats with (pca|zeros) \(not", section)
    for key in ("originals above their reconstructions", "images decoded from the prior"):
        for start in starts:
            for epoch in ("1", "5, best and last"):
                assert section.count(f'alt="latent_init {start}, epoch {epoch}: {key}"') == 1
