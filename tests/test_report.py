"""The comparison report, made from a real tracking store with a few small runs and opened in a browser."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import complaints
from mlflow.entities import Metric, Param, RunTag
from PIL import Image

from elbolab import tracker
from elbolab.compare import CompareConfig, build, compare
from elbolab.errors import UserError
from elbolab.report.page import render

GAUSSIAN = "gaussian sigma=0.4, pixels in [0,1]"
CLASSES = 10
MEANS = {"vae": -52.0, "latent_opt": -54.0, "ppca": -71.0}
POSTERIORS = {
    "vae": "encoder",
    "latent_opt": "fitted: 300 Adam steps at rate 0.1 falling to 0, 1 restart, seed 0",
    "ppca": "exact",
}


class Store:
    """A tracking store that is filled with invented runs."""

    def __init__(self, folder: Path, experiment: str):
        self.folder = folder
        self.client = mlflow.MlflowClient(mlflow.get_tracking_uri())
        found = self.client.get_experiment_by_name(experiment)
        self.experiment = (
            found.experiment_id if found else self.client.create_experiment(experiment, str(folder / "runs"))
        )
        self.clock = 1_700_000_000_000

    def train(
        self,
        model: str,
        digest: str = "d1",
        observed: str = GAUSSIAN,
        status: str = "FINISHED",
        name: str = "",
        kind: str = "train",
        epochs: int = 5,
        pictures: bool = True,
        **params: object,
    ) -> str:
        """Log one run as training leaves it."""
        self.clock += 60_000
        observed = "categorical" if model == "cnn" else observed
        tags = {"elbolab.kind": kind, "data.name": "toy", "data.digest": digest, "observation_model": observed}
        tags |= {"git.commit": "0123abc", "git.dirty": "False", "device": "cpu", "mlflow.runName": name or model}
        given = {
            "model": model,
            "dataset": "toy",
            "epochs": epochs,
            "seed": 0,
            "lr": 0.001,
            "data_dir": "/home/someone/data",
        }
        given |= params
        run = self.client.create_run(self.experiment, start_time=self.clock, tags=tags).info.run_id
        steps = range(1, 2 if model == "ppca" else epochs + 1)
        metrics = [
            Metric(f"{split}/{key}", value, self.clock, step)
            for step in steps
            for split in ("train", "val")
            for key, value in self.epoch(model, step, split, str(given.get("latent_init"))).items()
        ]
        self.client.log_batch(run, metrics, [Param(key, str(value)) for key, value in given.items()])
        if model != "cnn" and pictures:
            for step in [step for step in (1, 5, 10, 20, 30) if step in steps]:
                for key, rows in (("reconstructions_train", 2), ("reconstructions_val", 2), ("samples", 4)):
                    pixels = np.random.default_rng(step + rows).integers(0, 255, (29 * rows - 1, 289), dtype=np.uint8)
                    self.client.log_image(run, Image.fromarray(pixels), key=key, step=step)
        self.client.set_terminated(run, status, self.clock + 30_000)
        return run

    @staticmethod
    def epoch(model: str, step: int, split: str, start: str) -> dict[str, float]:
        """Invent the values of one epoch."""
        worse = (0.5 if split == "val" else 0.0) + len(start) % 3
        if model == "cnn":
            return {"loss": 0.5 / step + worse / 10, "accuracy": 1 - 0.1 / step - worse / 100}
        loss = 60 + 40 / step + worse
        return {"loss": loss, "elbo": -loss, "mse": 0.01 + 0.04 / step, "kl": 22 - 10 / step, "lr": 0.001}

    def evaluate(self, run: str, model: str, cnn: str = "", n: int = 20) -> None:
        """Log on a run what evaluation leaves there."""
        random = np.random.default_rng(len(model))
        labels = np.arange(n) % CLASSES
        noise = np.random.default_rng(3).normal(0, 8, n) - 2 * labels
        confusion = np.eye(CLASSES, dtype=int) * (n // CLASSES)
        confusion[4] = np.roll(confusion[4], 0) - np.eye(CLASSES, dtype=int)[4] + np.eye(CLASSES, dtype=int)[9]
        splits = {split: {"n": n, "confusion": confusion.tolist()} for split in ("train", "val", "test")}
        files = self.folder / "files" / run
        files.mkdir(parents=True)
        if model == "cnn":
            metrics = {"test/accuracy": 1 - 1 / n, "test/loss": 0.05, "test/n": n}
            (files / "classes.json").write_text(json.dumps({"splits": splits}))
        else:
            frames, metrics = [], {}
            for split in ("train", "val", "test"):
                kinds = [POSTERIORS[model].split(":")[0]] + (
                    ["table"] if (model, split) == ("latent_opt", "train") else []
                )
                for posterior in kinds:
                    shift = {"train": 1.5, "val": 0.3, "test": 0.0}[split] + 3 * (posterior == "table")
                    log_px = MEANS[model] + shift + noise + random.normal(0, 0.5, n)
                    frame = pd.DataFrame({"index": np.arange(n) + 100, "split": split, "label": labels})
                    frame = frame.assign(posterior=posterior, log_px=log_px, std_err=0.05, ess=120.0, elbo=log_px - 8)
                    frames.append(frame.assign(log_px_constant=-160.0 + noise))
                    tail = "_table" if posterior == "table" else ""
                    metrics[f"{split}/log_px{tail}"] = float(log_px.mean())
                    metrics[f"{split}/log_px{tail}_se"] = float(log_px.std(ddof=1) / np.sqrt(n))
                    if not tail:
                        metrics |= {
                            f"{split}/log_px_digit_{d}": float(log_px[labels == d].mean()) for d in range(CLASSES)
                        }
                        metrics |= {f"{split}/posterior_elbo": float(log_px.mean() - 8), f"{split}/ess": 120.0}
                        metrics |= {f"{split}/log_px_constant": float((-160.0 + noise).mean())}
                        metrics |= {f"{split}/accuracy_original": 0.98, f"{split}/accuracy_reconstruction": 0.94}
                        metrics |= {f"{split}/class_preservation": 1 - 1 / n}
            pd.concat(frames).to_parquet(files / "likelihood.parquet")
            ten = [
                {"index": d, "label": d, "original": d, "reconstruction": 9 if d == 4 else d} for d in range(CLASSES)
            ]
            classes = {"cnn_run": cnn, "cnn_test_accuracy": 0.98, "splits": splits, "ten": {"train": ten, "val": ten}}
            (files / "classes.json").write_text(json.dumps(classes))
            pixels = np.random.default_rng(0).integers(0, 255, (CLASSES, 28, 28, 1), dtype=np.uint8)
            where = {"index": np.arange(CLASSES) + 100, "label": np.arange(CLASSES)}
            images = where | {"originals": pixels, "reconstructions": pixels // 2}
            np.savez(files / "examples.npz", **images)  # pyright: ignore[reportArgumentType]
        tags = {
            "samples": "1000",
            "images": str(n),
            "seed": "0",
            "posterior": POSTERIORS.get(model, ""),
            "cnn_run": cnn,
        }
        marks = [RunTag(f"evaluation.{key}", value) for key, value in tags.items() if value]
        self.client.log_batch(run, [Metric(key, value, self.clock, 0) for key, value in metrics.items()], tags=marks)
        self.client.log_artifacts(run, str(files), "evaluation")


def fill(store: Store) -> dict[str, str]:
    """Log a complete set of runs, evaluated, and return their ids by model."""
    ids = {"zeros": store.train("latent_opt", latent_init="zeros", pictures=False)}
    ids["cnn"] = store.train("cnn", name="<script>alert(1)</script>")
    ids["vae"] = store.train("vae", sigma=0.4)
    ids["latent_opt"] = store.train("latent_opt", latent_init="pca", sigma=0.4)
    ids["ppca"] = store.train("ppca", sigma=0.4)
    for model in ("cnn", "vae", "latent_opt", "ppca"):
        store.evaluate(ids[model], model, ids["cnn"])
    return ids


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """A fresh sqlite store that this module's runs are logged to, made once: its migration takes seconds."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        for variable in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            patch.delenv(variable, raising=False)
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield patch
        mlflow.set_tracking_uri(before)


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
    return compare(CompareConfig(out=folder / "report")).parent, ids, store


def signed(value: float) -> str:
    """A number as the page writes it."""
    return f"{value:.2f}".replace("-", "\u2212")


def test_numbers_are_the_logged_ones(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, store = report
    html, markdown = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    summary = pd.read_csv(folder / "summary.csv").set_index(["run", "split", "posterior"])
    for model in MEANS:
        metrics = store.client.get_run(ids[model]).data.metrics
        for split in ("train", "test"):
            row = summary.loc[(ids[model], split, POSTERIORS[model].split(":")[0])]
            assert row["log_px"] == pytest.approx(metrics[f"{split}/log_px"], abs=1e-12)
            assert row["log_px_se"] == pytest.approx(metrics[f"{split}/log_px_se"], abs=1e-12)
            shown = f"{signed(metrics[f'{split}/log_px'])} ± {metrics[f'{split}/log_px_se']:.2f}"
            assert shown in html
            assert shown in markdown
        assert signed(metrics["test/log_px_digit_3"]) in html
        assert ids[model] in html
        assert ids[model] in markdown
    metrics = store.client.get_run(ids["latent_opt"]).data.metrics
    assert summary.loc[(ids["latent_opt"], "train", "table"), "log_px"] == pytest.approx(metrics["train/log_px_table"])
    assert "95.0 ± 4.9 %" in html  # 19 of 20 right: sqrt(.95 * .05 / 20)


def test_pairs_are_compared_image_by_image(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, store = report
    frames = []
    for model in ("latent_opt", "vae"):
        frame = pd.read_parquet(store.folder / "files" / ids[model] / "likelihood.parquet")
        frames.append(frame[(frame["split"] == "test")].set_index("index")["log_px"])
    gap = frames[0] - frames[1]
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    said = f"On the same 20 test images latent_opt is {abs(gap.mean()):.2f} ± {error:.2f} nats below vae."
    assert said in (folder / "index.html").read_text()
    assert said in (folder / "report.md").read_text()


def test_initialisations_are_the_nearest_runs(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, ids, _ = report
    table = pd.read_csv(folder / "initialisation.csv").set_index("latent_init")
    assert dict(table["run"]) == {"pca": ids["latent_opt"], "zeros": ids["zeros"]}
    curve = pd.read_csv(folder / "curves.csv").query("run == @ids['zeros'] and key == 'val/elbo'")
    assert table.loc["zeros", "final_val_elbo"] == curve["value"].iloc[-1] == -(60 + 40 / 5 + 0.5 + 2)


def test_page_stands_alone(report: tuple[Path, dict[str, str], Store]) -> None:
    folder, _, _ = report
    html = (folder / "index.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "/home/someone" not in html + (folder / "report.md").read_text() + (folder / "runs.csv").read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    for svg in re.findall(r"<svg[^>]*>", html):
        assert 'aria-label="' in svg
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", html))


def test_same_runs_give_same_bytes(report: tuple[Path, dict[str, str], Store], server: pytest.MonkeyPatch) -> None:
    folder, ids, store = report
    server.setenv("MLFLOW_EXPERIMENT_NAME", "full")
    again = compare(CompareConfig(out=store.folder / "again")).parent
    names = {path.name for path in folder.iterdir()}
    tables = {"summary.csv", "digits.csv", "images.csv", "curves.csv", "initialisation.csv", "runs.csv"}
    assert names == tables | {"index.html", "report.md"}
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
    logged = store.client.search_runs([store.experiment], "tags.`elbolab.kind` = 'compare'")
    assert len(logged) == 2
    for run in logged:
        assert {file.path for file in store.client.list_artifacts(run.info.run_id, "report")} == {
            f"report/{n}" for n in names
        }
        assert {run.data.tags[f"compare.{model}"] for model in MEANS} == {ids[model] for model in MEANS}


def test_missing_runs_and_evaluations_are_shown(store: Store, tmp_path: Path) -> None:
    vae = store.train("vae", sigma=0.4, likelihood="gaussian")
    html = compare(CompareConfig(out=tmp_path / "report")).read_text()
    assert "No finished latent_opt run on this data." in html
    assert "<code>elbolab latent_opt --dataset toy --likelihood gaussian --sigma 0.4</code>" in html
    assert "<code>elbolab cnn --dataset toy</code>" in html
    assert f"<code>elbolab evaluate {vae}</code>" in html
    assert not re.search(r">\s*(nan|None|± nan)", re.sub(r'"data:[^"]*"', "", html))


def test_latest_finished_runs_of_one_task_are_taken(store: Store, tmp_path: Path) -> None:
    store.train("vae", pictures=False)
    other = store.train("vae", digest="d2", pictures=False)
    bernoulli = store.train("ppca", observed="bernoulli", pictures=False)
    vae = store.train("vae", pictures=False)
    failed = store.train("vae", status="FAILED", pictures=False)
    html = compare(CompareConfig(out=tmp_path / "report", dataset="toy")).read_text()
    assert f'id="run-{vae}"' in html
    assert all(run not in html for run in (other, bernoulli, failed))


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
    run = tracker.get_run(store.train("vae", pictures=False))
    page = render(build([replace(run, url="https://server/#/runs/1?a=1&b=2")], []))["index.html"]
    assert f'<a class="id" href="https://server/#/runs/1?a=1&amp;b=2">{run.id}</a>' in page


def test_two_runs_of_one_model_are_told_apart(store: Store, tmp_path: Path) -> None:
    runs = [store.train("vae", pictures=False, seed=seed) for seed in (0, 1)]
    html = compare(CompareConfig(run=tuple(runs), out=tmp_path / "report")).read_text()
    assert all(f"vae {run[:8]}" in html and f'id="run-{run}"' in html for run in runs)


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
