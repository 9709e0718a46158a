"""The comparison report, made from a real tracking store with a few small runs and opened in a browser."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import complaints
from invented_runs import GAUSSIAN, MEANS, POSTERIORS, Store, fill, reproduce, rows_of, served, signed, spread

from elbolab.report.blocks import Table, start
from elbolab.report.collect import Comparison
from elbolab.report.compare import CompareConfig, build, compare
from elbolab.report.page import render
from elbolab.report.plots import Series, limits
from elbolab.report.sections import SECTIONS
from elbolab.report.sections.cost import cost_blocks
from elbolab.report.select import differences
from elbolab.report.training_cost import seconds_by_epoch, steps_by_epoch
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Iterator[pytest.MonkeyPatch]:
    """A fresh store that this module's runs are logged to."""
    with served(tmp_path_factory.mktemp("server"), tables) as patch:
        yield patch


@pytest.fixture
def store(server: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """An empty experiment of its own on the module's store."""
    name = f"toy-{tmp_path.name}"
    server.setenv("MLFLOW_EXPERIMENT_NAME", name)
    return Store(tmp_path, name)


@pytest.fixture(scope="module")
def report(server: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], Store]:
    """The report of a complete set of runs: its folder, the runs' ids and their store."""
    folder = tmp_path_factory.mktemp("full")
    server.setenv("MLFLOW_EXPERIMENT_NAME", "full")
    store = Store(folder, "full")
    ids = fill(store)
    ids["reproduced"] = reproduce(store, ids)
    return compare(CompareConfig(out=folder / "report")).parent, ids, store


def test_numbers_are_the_logged_ones(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, store = report
    html, markdown = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    summary = pd.read_csv(folder / "summary.csv").set_index(["run", "split", "posterior"])
    digits = pd.read_csv(folder / "digits.csv")
    for model in MEANS:
        metrics = store.client.get_run(ids[model]).data.metrics
        for split in ("train", "test"):
            row = summary.loc[(ids[model], split, POSTERIORS[model].split(":")[0])]
            assert row["log_px"] == pytest.approx(metrics[f"{split}/log_px"], abs=1e-12)
            assert row["log_px_se"] == pytest.approx(metrics[f"{split}/log_px_se"], abs=1e-12)
            shown = spread(metrics[f"{split}/log_px"], metrics[f"{split}/log_px_se"])
            assert shown in html
            assert shown in markdown
        error = digits.query("run == @ids[@model] and model == @model and split == 'test' and digit == 3")["log_px_se"]
        assert spread(metrics["test/log_px_digit_3"], error.item()) in html
        assert ids[model] in html
        assert ids[model] in markdown
    metrics = store.client.get_run(ids["latent_opt"]).data.metrics
    assert summary.loc[(ids["latent_opt"], "train", "table"), "log_px"] == pytest.approx(metrics["train/log_px_table"])
    assert "95.0 ± 4.9 %" in html  # 19 of 20 right: sqrt(.95 * .05 / 20)
    assert "95.0 % (85.0 to 100.0)" in html
    row = summary.loc[(ids["vae"], "test", "encoder")]
    assert (row["class_preservation_low"], row["class_preservation_high"]) == (0.85, 1)


def test_the_classifier_is_named_with_its_own_accuracy(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, _ = report
    cnn = ids["cnn"][:8]
    assert (folder / "report.md").read_text().count(f"- Classified by `{cnn}`, test accuracy 98.0 %") == 3
    html = (folder / "index.html").read_text()
    assert len(re.findall(f"<dt>Classified by</dt><dd><a [^>]*>{cnn}</a>, test accuracy 98.0 %</dd>", html)) == 3


def test_a_run_says_where_and_in_what_precision_it_was_trained(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, _ = report
    runs = pd.read_csv(folder / "runs.csv").set_index("run")
    assert runs.loc[ids["vae"], ["device", "precision"]].tolist() == ["cpu", "bfloat16"]
    for page in ("index.html", "report.md"):
        assert "cpu, trained in bfloat16" in (folder / page).read_text()


def test_pairs_are_compared_image_by_image(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, store = report
    frames = []
    for model in ("latent_opt", "vae"):
        frame = pd.read_parquet(store.folder / "files" / ids[model] / "likelihood.parquet")
        frames.append(frame[(frame["split"] == "test")].set_index("index")["log_px"].dropna())
    gap = frames[0] - frames[1]
    pairs = pd.read_csv(folder / "pairs.csv").set_index(["model", "other", "split"])
    assert len(pairs) == 6  # three densities, two splits
    row = pairs.loc[("latent_opt", "vae", "test")]
    assert row["mean"] == pytest.approx(gap.mean())
    assert (row["images"], row["above"], row["below"]) == (20, (gap > 0).mean(), (gap < 0).mean())
    half = (row["high"] - row["low"]) / 2
    (table,) = [table for table in rows_of((folder / "index.html").read_text()) if "Minus" in table[0]]
    said = [f"{signed(gap.mean(), half)}\u2020", f"{signed(row['low'], half)} to {signed(row['high'], half)}"]
    said += [f"{100 * share:.1f} %" for share in ((gap > 0).mean(), (gap < 0).mean())]
    assert ["latent_opt", ids["latent_opt"][:8], "vae", ids["vae"][:8], "test", "20", "\u2013", *said] in table


def test_initialisations_are_ablations(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, _ = report
    table = pd.read_csv(folder / "ablations.csv", keep_default_na=False)
    assert table["runs"].tolist() == [ids["latent_opt"], ids["zeros"]]
    assert table[["field", "value", "base"]].values.tolist() == [["", "", ""], ["latent_init", "zeros", "pca"]]
    curve = pd.read_csv(folder / "curves.csv").query("run == @ids['zeros'] and key == 'val/elbo'")
    assert float(table["last_val_elbo"].tolist()[1]) == curve["value"].iloc[-1] == -(60 + 40 / 5 + 0.5 + 2)
    html = (folder / "index.html").read_text()
    section = html[html.index('<section id="ablations">') : html.index('<section id="reproductions">')]
    best = f"{signed(-68.5)} nats with pca, {signed(-70.5)} nats with zeros"
    said = f"latent_opt: best validation ELBO by latent_init: {best}."
    for shown in ("latent_opt: validation ELBO by latent_init", said):
        assert shown in section
        assert html.count(shown) == section.count(shown)
    assert said in (folder / "report.md").read_text()


def test_page_stands_alone(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, _, _ = report
    html = (folder / "index.html").read_text()
    assert html.count("<script") == html.count("</script") == 1
    assert "&lt;script&gt;alert(1)" in html
    assert "Over seeds" not in html
    assert "/home/someone" not in html + (folder / "report.md").read_text() + (folder / "runs.csv").read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    for svg in re.findall(r"<svg[^>]*>", html):
        assert 'aria-label="' in svg
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", html))


def test_files_are_logged_with_a_run(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, store = report
    names = {path.name for path in folder.iterdir()}
    tables = {"summary", "seeds", "pairs", "digits", "images", "ablations", "curves", "runs"}
    tables |= {"bounds", "gap", "representation", "fidelity", "ood"}
    assert names == {f"{name}.csv" for name in tables} | {"index.html", "report.md", "tables.tex"}
    (run,) = store.client.search_runs([store.experiment], "tags.`elbolab.kind` = 'compare'")
    logged = {file.path for file in store.client.list_artifacts(run.info.run_id, "report")}
    assert logged == {f"report/{name}" for name in names}
    assert {run.data.tags[f"compare.{model}"] for model in MEANS} == {ids[model] for model in MEANS}


@pytest.mark.parametrize("model", ["vae", "iwae", "cnn", "of_tomorrow"])
def test_a_run_alone_lacks_its_evaluation_and_no_other_model(store: Store, tmp_path: Path, model: str) -> None:
    run = store.train(model, sigma=0.4, likelihood="gaussian")
    html = compare(CompareConfig(out=tmp_path / "report")).read_text()
    assert re.findall(r'<p class="missing">.*?</p>', html) == [
        f'<p class="missing"><b>Missing.</b> {model} has not been evaluated. Run '
        f"<code>elbolab evaluate {run}</code></p>"
    ]
    assert html.count('<div class="card"') == 1
    assert not re.search(r">\s*(nan|None|± nan)", re.sub(r'"data:[^"]*"', "", html))
    others = {"cnn", "vae", "iwae", "hierarchical", "semi_amortized", "latent_opt", "ppca"} - {model}
    assert not any(re.search(rf"\b{other}\b", html) for other in others)


def test_an_evaluation_without_a_classifier_is_told(report: tuple[Path, dict[str, str], Store]) -> None:
    _, ids, _ = report
    vae = mlflow_reader.get_run(ids["vae"])
    kept = {key: value for key, value in vae.metrics.items() if "class_preservation" not in key}
    page = render(build([[(replace(vae, metrics=kept),)]], more_seeds=False))["index.html"]
    assert (
        "vae was evaluated without a classifier, so that class preservation is not available. Where there is no cnn of "
        "these data, train one by elbolab cnn --dataset toy, and evaluate again."
    ) in page
    assert "No finished" not in page


def test_every_model_has_its_curves_and_pictures(store: Store, tmp_path: Path) -> None:
    models = ("iwae", "semi_amortized", "of_tomorrow", "vae", "latent_opt")
    runs = {model: store.train(model, sigma=0.4) for model in (*models, "ppca")}
    html = compare(CompareConfig(out=tmp_path / "report")).read_text()
    sections = dict(re.findall(r'<section id="([\w-]+)">(.*?)</section>', html, re.DOTALL))
    assert [*sections] == ["summary", "latent-variable-models", "runs"]
    section = sections["latent-variable-models"]
    labels = re.findall(r'aria-label="([^"]*) by epoch: ([^"]*)"', section)
    # The ELBO at beta = 1, not the loss while its KL term is warmed up.
    assert [title for title, _ in labels] == [
        "\u2212ELBO (nats)",
        "Mean squared error (per pixel)",
        "KL divergence (nats)",
    ]
    pictures = re.findall(r'alt="([^"]*)"', section)
    for model in models:
        assert all(f"{model} validation from" in lines for _, lines in labels)
        for epoch in ("1", "5, best and last"):
            # Of training and of validation digits.
            assert pictures.count(f"{model}, epoch {epoch}: originals above their reconstructions") == 2
            assert pictures.count(f"{model}, epoch {epoch}: images decoded from the prior") == 1
        assert f"{model}: validation ELBO is highest at epoch 5" in section
        assert runs[model][:8] in section
    assert all("vae validation from 101.5 to 69.5;" in lines for title, lines in labels if "ELBO" in title)
    # A closed form has pictures, beside the others' best, and neither a curve nor an epoch.
    assert not any("ppca" in lines for _, lines in labels)
    assert "ppca, epoch" not in html
    assert not re.search(r"ppca: validation ELBO|at epoch 1\b", section)
    rows = re.findall(r'<div class="grids[^>]*>(.*?)</div>', section, re.DOTALL)
    assert [row.count("<img") for row in rows] == [5, 6] * 3
    assert all(f"{model}, epoch 5, best and last:" in row for row in rows[1::2] for model in models)
    assert all('alt="ppca: ' in row for row in rows[1::2])
    curves = pd.read_csv(tmp_path / "report" / "curves.csv")
    assert {*curves[curves["epoch"].isna()]["model"]} == {"ppca"}
    assert {*curves[curves["epoch"].notna()]["model"]} == {*models}


def test_best_and_last_epoch_are_marked(store: Store, tmp_path: Path) -> None:
    run = store.train("vae", sigma=0.4, epochs=30)
    store.client.set_tag(run, "best_epoch", "20")
    html = compare(CompareConfig(run=(run,), out=tmp_path / "report")).read_text()
    (row, *_) = re.findall(r'<div class="grids">(.*?)</div>', html, re.DOTALL)
    assert re.findall(r'alt="vae, epoch ([^:]*):', row) == ["1", "5", "10", "20, best", "30, last"]
    assert "vae, epoch 20, <b>best</b>" in row
    # With others a run's best stands in the row of theirs.
    other = store.train("iwae", sigma=0.4, epochs=5)
    html = compare(CompareConfig(run=(run, other), out=tmp_path / "report")).read_text()
    rows = re.findall(r'<div class="grids aligned"[^>]*>(.*?)</div>', html, re.DOTALL)[:5]
    assert [re.findall(r'alt="(\w+, epoch [^:]*):', row) for row in rows] == [
        ["iwae, epoch 1", "vae, epoch 1"],
        ["vae, epoch 5"],
        ["vae, epoch 10"],
        ["iwae, epoch 5, best and last", "vae, epoch 20, best"],
        ["vae, epoch 30, last"],
    ]


def test_the_score_is_drawn_against_what_it_cost(store: Store, tmp_path: Path) -> None:
    runs = {model: store.train(model, sigma=0.4) for model in ("vae", "ppca")}
    html = compare(CompareConfig(run=tuple(runs.values()), out=tmp_path / "report")).read_text()
    found = dict(re.findall(r'aria-label="Validation \u2212ELBO \(nats\) by ([\w ]+): ([^"]*)"', html))
    level = "ppca at 101.5, dotted"
    assert found == {
        "gradient steps": f"vae from 101.5 at 50 to 69.5 at 250; {level}",
        "seconds": f"vae from 101.5 at 2.5 to 69.5 at 12.5; {level}",
    }


def test_the_cost_of_an_old_run_is_that_of_its_parameters_and_speed(store: Store) -> None:
    run = mlflow_reader.get_run(store.train("latent_opt", batch_size=8, latent_steps=2, pictures=False))
    comparisons = []
    for train_images in (None, 20):
        (one,) = build([[(replace(run, train_images=train_images),)]], more_seeds=False)
        logged = {key: values for key, values in one.curves.items() if key[1] not in ("train/steps", "train/seconds")}
        speed = {(run.id, "train/images_per_s"): {1: 10.0, 2: 20.0}}
        comparisons.append(replace(one, curves=logged | speed))
    unknown, known = comparisons
    assert cost_blocks(unknown) == []
    (entry,) = known.latents
    assert steps_by_epoch(known, entry) == {epoch: 6 * epoch for epoch in range(1, 6)}
    assert seconds_by_epoch(known, entry) == {1: 2.0, 2: 3.0}
    assert len(cost_blocks(known)[0].svgs) == 2


def test_class_changes_have_the_truth_and_what_the_classifier_sees(store: Store, tmp_path: Path) -> None:
    ids = fill(store)
    path = store.folder / "files" / ids["vae"] / "classes.json"
    classes = json.loads(path.read_text())
    for digit in (5, 4):
        # It takes a 5 for a 3, of which the reconstruction is one too, and a 4 for a 1.
        classes["ten"]["val"][digit] |= {"original": {5: 3, 4: 1}[digit]}
    classes["ten"]["val"][5]["reconstruction"] = 3
    path.write_text(json.dumps(classes))
    store.client.log_artifact(ids["vae"], str(path), "evaluation")
    html = compare(CompareConfig(run=(ids["vae"], ids["cnn"]), out=tmp_path / "report")).read_text()
    (table,) = [table for table in rows_of(html) if "Changed" in table[0]]
    head, _, validation = table
    row = dict(zip(head, validation, strict=True))
    assert (row["Split"], row["3"], row["4"], row["5"]) == ("validation", "3 \u2192 3", "1* \u2192 9", "3* \u2192 3")
    assert (row["Changed"], row["Misread"]) == ("1", "2")
    assert re.findall(r"<b>(?:<a[^>]*>)?(\S+ \u2192 \d)", html) == ["4 \u2192 9", "1* \u2192 9"]
    # Confusion tables of validation and of test images.
    (section,) = re.findall(r'<section id="classifiers">(.*?)</section>', html, re.DOTALL)
    assert re.findall(r"<span>(20 \w+ images)</span>", section) == ["20 validation images", "20 test images"]


def test_models_stand_by_their_inference(store: Store, tmp_path: Path) -> None:
    ids = fill(store)
    named = store.train("of_tomorrow", sigma=0.4, posterior="full", prior="mixture", pictures=False)
    store.client.set_tag(named, "evaluation.posterior", "refined: encoder, then 5 gradient steps")
    html = compare(CompareConfig(out=tmp_path / "report")).read_text()
    (table,) = [table for table in rows_of(html) if "Inference" in table[0]]
    assert table[0] == ["Model", "Run", "Inference", "Family", "Prior"]
    assert [(row[0], *row[2:]) for row in table[1:]] == [
        ("vae", "encoder", "\u2013", "\u2013"),
        ("of_tomorrow", "refined", "full", "mixture"),
        ("latent_opt", "fitted", "\u2013", "\u2013"),
        ("ppca", "exact", "\u2013", "\u2013"),
    ]
    assert table[2][1] == named[:8]
    cards = re.findall(r'<div class="top"><span>(.*?)</span>', html)
    assert cards == ["cnn", "vae", "of_tomorrow", "latent_opt", "ppca"]
    assert ids["vae"][:8] in html


def test_a_section_is_a_function_and_a_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = mlflow_reader.get_run(store.train("iwae", pictures=False, lr=0.25))

    def rates(comparison: Comparison) -> list[Any]:
        rows = [[*start(entry), entry.run.params["lr"]] for entry in comparison.latents]
        return [Table("rates", "First rates.", ["Model", "Run", "lr"], rows)] if rows else []

    monkeypatch.setitem(SECTIONS, "Learning rates", rates)
    pages = render(build([[(run,)]], more_seeds=False))
    (section,) = re.findall(r'<section id="learning-rates">(.*?)</section>', pages["index.html"], re.DOTALL)
    assert rows_of(f"<section>{section}") == [[["Model", "Run", "lr"], ["iwae", run.id[:8], "0.25"]]]
    assert '<a href="#learning-rates">2 Learning rates</a>' in pages["index.html"]
    assert f"| iwae | `{run.id[:8]}` | 0.25 |" in pages["report.md"]
    assert r"\label{tab:toy-rates}" in pages["tables.tex"]
    # One that has nothing to show is left out.
    classifier = mlflow_reader.get_run(store.train("cnn"))
    assert "Learning rates" not in render(build([[(classifier,)]], more_seeds=False))["index.html"]


def test_latest_finished_runs_of_one_task_are_taken(store: Store, tmp_path: Path) -> None:
    store.train("vae", pictures=False)
    other = store.train("vae", digest="d2", pictures=False)
    bernoulli = store.train("ppca", observed="bernoulli", pictures=False)
    vae = store.train("vae", pictures=False)
    failed = store.train("vae", status="FAILED", pictures=False)
    html = compare(CompareConfig(out=tmp_path / "report", dataset=("toy",))).read_text()
    assert f'id="run-{vae}"' in html
    assert all(run not in html for run in (other, bernoulli, failed))


def test_a_run_that_has_not_converged_takes_no_converged_one_s_place(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quick try, or a start of `main` that ends early, would else hide what can be ranked."""
    _, converged, newest = (store.train("vae", pictures=False, converged=value) for value in ("false", "true", "false"))
    html = compare(CompareConfig(out=tmp_path / "report", dataset=("toy",))).read_text()
    assert f'id="run-{converged}"' in html
    said = capsys.readouterr().err
    assert f"the newest run of vae, {newest[:8]}, has not converged; {converged[:8]} is" in said
    # One that ends better is no quick try.
    better = store.train("vae", pictures=False, converged="false", epochs=9)
    assert f'id="run-{better}"' in compare(CompareConfig(out=tmp_path / "report", dataset=("toy",))).read_text()


def test_mixed_runs_are_refused_with_both_named(store: Store, tmp_path: Path) -> None:
    one, other = store.train("vae", pictures=False), store.train("ppca", observed="bernoulli", pictures=False)
    moved = store.train("cnn", digest="d2")
    with pytest.raises(UserError) as error:
        compare(CompareConfig(run=(one, other), out=tmp_path / "report"))
    assert all(text in str(error.value) for text in (one, other, GAUSSIAN, "bernoulli"))
    with pytest.raises(UserError) as error:
        compare(CompareConfig(run=(one, moved), out=tmp_path / "report"))
    assert all(text in str(error.value) for text in (one, moved, "`d1`", "`d2`"))
    assert not (tmp_path / "report").exists()
    assert not store.client.search_runs([store.experiment], "tags.`elbolab.kind` = 'compare'")


def test_runs_that_cannot_be_compared_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished train run.*train one first"):
        compare(CompareConfig(out=tmp_path / "report"))
    running = store.train("vae", status="FAILED", pictures=False)
    with pytest.raises(UserError, match=f"{running} is FAILED"):
        compare(CompareConfig(run=(running,), out=tmp_path / "report"))
    study = store.train("vae", kind="study", pictures=False)
    with pytest.raises(UserError, match=f"{study} is no train run"):
        compare(CompareConfig(run=(study,), out=tmp_path / "report"))
    with pytest.raises(UserError, match="0000"):
        compare(CompareConfig(run=("0" * 32,), out=tmp_path / "report"))


def test_runs_link_to_their_server(store: Store) -> None:
    run = mlflow_reader.get_run(store.train("vae", pictures=False))
    page = render(build([[(replace(run, url="https://server/#/runs/1?a=1&b=2"),)]], more_seeds=False))
    href = 'href="https://server/#/runs/1?a=1&amp;b=2"'
    assert f'<a class="id" {href}>{run.id}</a>' in page["index.html"]
    assert f'<a class="id" {href}>{run.id[:8]}</a>' in page["index.html"]
    assert f'href="#run-{run.id}"' not in page["index.html"]
    numbers = re.findall(r'<td class="n">(.*?)</td>', page["index.html"])
    assert numbers
    assert all(f'<a class="value" {href}>' in text for text in numbers if text != "\u2013")
    assert f"[`{run.id[:8]}`](https://server/#/runs/1?a=1&b=2)" in page["report.md"]


def test_every_number_leads_to_the_page_of_a_run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, lr, shift in ((1, 0.001, 1), (0, 0.01, -4)):
        run = store.train("vae", sigma=0.4, seed=seed, lr=lr, pictures=False)
        store.evaluate(run, "vae", shift=shift)
    ids = fill(store)
    reproduced = reproduce(store, ids)
    monkeypatch.setattr(mlflow_reader, "page_of", lambda experiment, run: f"https://server/{experiment}/{run}")
    html = compare(CompareConfig(out=tmp_path / "report")).read_text()
    where = f"https://server/{store.experiment}"
    plain, heads = set(), set()
    for head, row in rows_with_heads(html):
        heads |= {*head}
        for name, cell in zip(head, row, strict=True):
            if (
                'class="n"' in cell
                and re.search(r"\d", re.sub("<[^>]*>", "", cell))
                and f'"value" href="{where}/' not in cell
            ):
                plain.add(name)
    # Numbers of runs all lead to one; what somebody reported is of none.
    assert plain == {"Reported"}
    assert {"Seeds", "Parameter", "Reported"} <= heads
    for run in (ids["vae"], reproduced):
        assert f'<a class="id" href="{where}/{run}">{run[:8]}</a>' in html
    assert f"[`{reproduced[:8]}`]({where}/{reproduced})" in (tmp_path / "report" / "report.md").read_text()


def rows_with_heads(page: str) -> Iterator[tuple[list[str], list[str]]]:
    """Every row of a page's tables that sort, as cells with their tags, and the words of its table's head."""
    for head, body in re.findall(r'<table class="sortable">\s*<thead>(.*?)</thead>(.*?)</table>', page, re.DOTALL):
        names = [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", head, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
            yield names, re.findall(r"<td.*?</td>", row, re.DOTALL)


def test_two_runs_of_one_model_are_told_apart(store: Store, tmp_path: Path) -> None:
    runs = [store.train("vae", pictures=False, seed=seed) for seed in (0, 1)]
    html = compare(CompareConfig(run=tuple(runs), out=tmp_path / "report")).read_text()
    assert all(f"vae {run[:8]}" in html and f'id="run-{run}"' in html for run in runs)


def test_what_mlflow_run_logs_as_it_was_typed_is_no_parameter(store: Store) -> None:
    fields = {"latent_init": "pca", "latent_dim": 4, "pictures": False}
    one = mlflow_reader.get_run(store.train("latent_opt", **fields))
    typed = {"latent-dim": 4, "resume": one.id, "new_run": "true"}
    other = mlflow_reader.get_run(store.train("latent_opt", **fields, **typed, seed=1))
    assert differences(other, one) == []


def test_page_opens_in_a_browser(report: tuple[Path, dict[str, str], Store], browser: Any) -> None:
    with browser.new_page(viewport={"width": 390, "height": 844}) as view:
        problems = complaints(view)
        view.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url),
        )
        view.goto((report[0] / "index.html").as_uri())
        widths = view.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
        assert len(widths) > 20
        assert all(width > 0 for width in widths)
        for width in (390, 1200):
            view.set_viewport_size({"width": width, "height": 844})
            assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []


def test_an_axis_is_cut_where_the_first_epochs_would_hide_the_others() -> None:
    steep = Series("steep", 0, range(1, 11), [400, 100, *[80 - step for step in range(8)]])
    flat = Series("flat", 1, range(1, 11), [80 - step for step in range(10)])
    low, high = limits([steep, flat]) or (0, 0)
    assert 70 < low < 71
    assert 80 < high < 81
    assert limits([flat]) is None
    # A level is never cut off.
    assert limits([flat, Series("level", 2, [], [], level=200.0)]) is None
