"""What a report says of how far its numbers can be trusted, of latent spaces and of samples."""

import html
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from invented_runs import PARETO_K, Store, fill, rows_of, served, signed, spread

from elbolab.report.collect import SPLITS
from elbolab.report.compare import CompareConfig, build, compare
from elbolab.report.page import render
from elbolab.support.statistics import k_threshold
from elbolab.tracking.mlflow_reader import get_run

DAGGER = "\u2020"


class Report(NamedTuple):
    """A report: its folder, the runs' ids by model, and their store."""

    folder: Path
    ids: dict[str, str]
    store: Store

    def csv(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"{name}.csv")

    def table(self, *heads: str) -> list[list[str]]:
        """The table of the page that has these among its heads."""
        (found,) = [table for table in rows_of((self.folder / "index.html").read_text()) if {*heads} <= {*table[0]}]
        return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Iterator[Report]:
    folder = tmp_path_factory.mktemp("trust")
    with served(folder, tables) as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "trust")
        store = Store(folder, "trust")
        ids = fill(store)
        yield Report(compare(CompareConfig(out=folder / "report")).parent, ids, store)


def likelihoods(report: Report, model: str) -> pd.DataFrame:
    return pd.read_parquet(report.store.folder / "files" / report.ids[model] / "likelihood.parquet")


def test_the_threshold_grows_with_the_samples():
    assert k_threshold(1000) == pytest.approx(2 / 3)
    assert k_threshold(100) == 0.5
    assert k_threshold(10) == 0
    assert k_threshold(1) == -math.inf
    assert k_threshold(10**6) == k_threshold(2200) == 0.7


def test_an_image_is_marked_by_its_own_k(report: Report):
    images = report.csv("images").query("model != 'constant image'").set_index(["run", "index"])
    markdown = (report.folder / "report.md").read_text()
    marked = 0
    for model in (*PARETO_K, "ppca"):
        # Of posteriors fitted to an encoder's decoder only the ELBO is known.
        test = likelihoods(report, model).query("split == 'test' and log_px.notna()").set_index("index")
        for index in range(100, 110):
            row = images.loc[(report.ids[model], index)]
            k = test.loc[index, "pareto_k"]
            if model == "ppca":
                assert math.isnan(row["pareto_k"])
                assert math.isnan(row["unreliable"])
            else:
                assert row["pareto_k"] == pytest.approx(k)
                assert row["unreliable"] == (k > 2 / 3)
            # The gallery's row of an image begins with its class and index.
            number = f"{signed(test.loc[index, 'log_px'])}"  # pyright: ignore[reportArgumentType]
            (cell,) = re.findall(rf"^\| \d \| {index} \|.*?{number}([^|]*)\|", markdown, re.MULTILINE)
            assert (DAGGER in cell) == (k > 2 / 3)
            marked += DAGGER in cell
    assert marked == 2


def test_a_mean_is_marked_where_most_of_its_images_have_too_high_a_k(report: Report):
    summary = report.csv("summary")
    doubtful = summary.query("unreliable == True")
    assert [*zip(doubtful["model"], doubtful["split"], strict=True)] == [("vae", split) for split in SPLITS]
    trained = summary.query("model == 'latent_opt' and posterior == 'table'")
    assert trained["pareto_k"].item() == pytest.approx(np.mean(PARETO_K["latent_opt"]))
    for heads in (("Test log p(x)", "Bias at most"), ("Validation", "Images")):
        for row in report.table(*heads)[1:]:
            assert any(DAGGER in cell for cell in row) == (row[0] == "vae")
    # Evaluations of 0.1.0 have left the k alone.
    weights = {(row[0], row[2], row[3]): [row[4], *row[6:8]] for row in report.table("Estimated by")[1:]}
    how = "importance, 1000 samples"
    for split in ("test", "training"):
        assert weights["vae", "encoder", split] == [how, f"60.0 %{DAGGER}", "0.72"]
        assert weights["latent_opt", "fitted", split] == [how, "20.0 %", "0.45"]
    assert weights["latent_opt", "table", "training"] == [how, "20.0 %", "0.45"]
    for row in report.table("Class")[1:]:
        digit = int(row[0])
        k = np.linspace(*PARETO_K["vae"], 20)
        # Of two images both.
        assert (DAGGER in row[1]) == (min(k[digit], k[digit + 10]) > 2 / 3)
        assert DAGGER not in row[2] + row[3]
    for row in report.table("First better")[1:]:
        assert (DAGGER in row[7]) == ("vae" in (row[0], row[2]))
    (card,) = re.findall(r'<div class="value">(?:<a [^>]*>)?(\S*\u2020)', (report.folder / "index.html").read_text())
    headline = summary.query("model == 'vae' and split == 'test' and posterior == 'encoder'")
    assert card == f"{signed(headline['log_px'].item(), headline['log_px_se'].item())}{DAGGER}"


def test_the_dagger_is_explained_once_on_a_page_and_under_every_table_of_a_paper(report: Report):
    page = (report.folder / "index.html").read_text()
    bodies = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert sum(DAGGER in body for body in bodies) > 4
    assert page.count('<p id="unreliable">\u2020 Unreliable: ') == 1
    latex = (report.folder / "tables.tex").read_text()
    tables = re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}(.*?)\\end\{table\}", latex, re.DOTALL)
    for inside, under in tables:
        assert (r"\textdagger{}" in inside) == ("much too low" in under)


def test_sentences_mark_what_they_cannot_trust(report: Report):
    page = (report.folder / "index.html").read_text()
    lists = re.findall(r'<ul class="notes">(.*?)</ul>', page, re.DOTALL)
    sentences = [item for body in lists for item in re.findall(r"<li>(.*?)</li>", body, re.DOTALL)]
    compared = [text for text in sentences if re.search(r"On the same|lie on average|highest mean", text)]
    assert len(compared) > 5
    for text in compared:
        # latent_opt's and ppca's own figures are trusted, the vae's are not.
        means = re.findall(r"highest mean for class (\d) .* lowest for class (\d)", text)
        if means and "vae" in text:
            k = np.linspace(*PARETO_K["vae"], 20)
            doubtful = [min(k[int(digit)], k[int(digit) + 10]) > 2 / 3 for digit in means[0]]
            assert text.count(DAGGER) == sum(doubtful)
        else:
            assert text.count(DAGGER) == ("vae" in text)
    markdown = (report.folder / "report.md").read_text()
    # The page has them on a card and where it says what they are, too.
    only_there = r'<div class="value">(?:<a [^>]*>)?\S*\u2020|What bears a \u2020'
    assert markdown.count(DAGGER) == page.count(DAGGER) - len(re.findall(only_there, page))


def test_gaps_add_up(report: Report):
    table = report.csv("gap").set_index(["model", "split", "posterior"])
    assert len(table) == 5
    parts = table["approximation_gap"] + table["amortization_gap"]
    np.testing.assert_allclose(parts, table["inference_gap"])
    np.testing.assert_allclose(table["log_px"] - table["elbo"], table["inference_gap"])
    np.testing.assert_allclose(table["elbo_best"] - table["elbo"], table["amortization_gap"])
    assert min(table["log_px"] - table["log_px_ais"]) >= 0
    frame = pd.read_parquet(report.store.folder / "files" / report.ids["latent_opt"] / "gap.parquet")
    for posterior in ("fitted", "table"):
        values = frame.query("split == 'train' and posterior == @posterior")["amortization_gap"]
        row = table.loc[("latent_opt", "train", posterior)]
        assert row["amortization_gap"] == pytest.approx(values.mean())
        assert row["amortization_gap_se"] == pytest.approx(values.sem())
        shown = [line for line in report.table("L[q*]")[1:] if line[:4:2] == ["latent_opt", posterior]]
        assert spread(row["amortization_gap"], row["amortization_gap_se"]) in [line[8] for line in shown]
    page = html.unescape((report.folder / "index.html").read_text())
    assert "latent_opt has no encoder" in page
    assert "lies between \u221261.30 and \u221260.90 nats" in page
    assert "16 chains, 1000 distributions" in page


def test_the_bound_is_drawn_by_its_samples(report: Report):
    page = (report.folder / "index.html").read_text()
    curve = report.csv("bounds").query("model == 'vae' and split == 'test'")
    ends = f"vae from {curve['log_px'].iloc[0]:.2f} at 1 to {curve['log_px'].iloc[-1]:.2f} at 1000"
    (svg,) = re.findall(r'<svg role="img" aria-label="[^"]*by number of samples: ([^"]*)"', page)
    assert svg.startswith(ends)
    assert "latent_opt from" in svg


def test_rate_is_aggregate_kl_and_mutual_information(report: Report):
    rows = {row[0]: row for row in report.table("Active units")[1:]}
    assert rows.keys() == {"vae", "latent_opt", "ppca"}
    for model, row in rows.items():
        metrics = report.store.client.get_run(report.ids[model]).data.metrics
        assert row[4:7] == [f"{metrics[f'test/{key}']:.2f}" for key in ("rate", "distortion", "aggregate_kl")]
        assert row[7] == f"{metrics['test/rate'] - metrics['test/aggregate_kl']:.2f} of {math.log(20):.2f}"


def test_samples_stand_beside_real_images_as_their_classifier_sees_both(report: Report):
    table = report.table("Recall")
    assert [row[0] for row in table[1:]] == ["vae", "latent_opt", "ppca", "training images"]
    assert table[-1][2:] == ["3.21", "0.0123 ± 0.0021", "0.90", "0.80", "0.95", "0.85"]
    page = (report.folder / "index.html").read_text()
    assert f"activations of cnn {report.ids['cnn'][:8]}." in page
    # It bounds distances from below and shares from above.
    assert "floor" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    # Judged by two classifiers, models stand in two tables.
    vae, ppca = (get_run(report.ids[model]) for model in ("vae", "ppca"))
    other = replace(vae, tags={**vae.tags, "evaluation.cnn_run": "another"})
    page = render(build([[(other,), (ppca,)]], more_seeds=False))["index.html"]
    tables = [[row[0] for row in table[1:]] for table in rows_of(page) if "Recall" in table[0]]
    assert tables == [["vae", "training images"], ["ppca", "training images"]]
