"""A tracking store with invented runs, as training and evaluation leave them, for the tests of the report."""

import html
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import copy_store
from mlflow.entities import Metric, Param, RunTag
from PIL import Image

from elbolab.evaluation import metrics as m
from elbolab.evaluation.metrics import POSTERIOR_ELBO
from elbolab.report.chart import Chart, Line
from elbolab.report.sections.reproductions import FOUND, summarise
from elbolab.support.statistics import mean_se
from elbolab.tracking.keys import KIND, REPRODUCTION

GAUSSIAN = "gaussian sigma=0.4, pixels in [0,1]"
CLASSES = 10
CELL = r"<t[hd][^>]*>(.*?)</t[hd]>"
MEANS = {"vae": -52.0, "latent_opt": -54.0, "ppca": -71.0}
PARETO_K = {"vae": (0.5, 0.95), "latent_opt": (0.1, 0.8)}
"""The least and the greatest Pareto k over a split's images; at 1,000 samples 2/3 is the most to be trusted."""
POSTERIORS = {
    "vae": "encoder",
    "latent_opt": "fitted: 300 Adam steps at rate 0.1 falling to 0, 1 restart, seed 0",
    "ppca": "exact",
}


class Store:
    """An experiment on the tracking store that is filled with invented runs."""

    def __init__(self, folder: Path, experiment: str) -> None:
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
        data: str = "toy",
        converged: str = "true",
        **params: object,
    ) -> str:
        """Log one run as training leaves it; of an earlier version, which did not say whether it ``converged``."""
        self.clock += 60_000
        observed = "categorical" if model == "cnn" else observed
        tags = {"elbolab.kind": kind, "data.name": data, "data.digest": digest, "observation_model": observed}
        tags |= {"git.commit": "0123abc", "git.dirty": "False", "mlflow.runName": name or model}
        tags |= {"device": "cpu", "precision": "bfloat16"} | ({"converged": converged} if converged else {})
        given = {
            "model": model,
            "dataset": data,
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
            # A closed form takes no steps.
            if model != "ppca" or key not in ("lr", "steps", "seconds")
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
        found = {"loss": loss + 7, "elbo": -loss, "mse": 0.01 + 0.04 / step, "kl": 22 - 10 / step}
        return found | ({"lr": 0.001, "steps": 50 * step, "seconds": 2.5 * step} if split == "train" else {})

    def evaluate(
        self,
        run: str,
        model: str,
        cnn: str = "",
        n: int = 20,
        shift: float = 0.0,
        samples: int = 1000,
        trust: bool = True,
    ) -> None:
        """Log on a run what evaluation leaves there, its log p(x) some nats above the model's mean.

        Without ``trust`` nothing of Pareto k, bounds, gaps, representation and fidelity is left, and nothing of an
        encoder's decoder under fitted posteriors.
        """
        random = np.random.default_rng([len(model), abs(round(10 * shift))])
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
                    raised = {"train": 1.5, "val": 0.3, "test": 0.0}[split] + 3 * (posterior == "table")
                    log_px = MEANS[model] + shift + raised + noise + random.normal(0, 0.5, n)
                    frame = pd.DataFrame({"index": np.arange(n) + 100, "split": split, "label": labels})
                    frame = frame.assign(posterior=posterior, log_px=log_px, std_err=0.05, ess=120.0, elbo=log_px - 8)
                    frame = frame.assign(log_px_constant=-160.0 + noise)
                    if trust:
                        frame = frame.assign(pareto_k=np.linspace(*PARETO_K.get(model, (np.nan, np.nan)), n))
                    frames.append(frame)
                    tail = "_table" if posterior == "table" else ""
                    metrics[f"{split}/log_px{tail}"] = float(log_px.mean())
                    metrics[f"{split}/log_px{tail}_se"] = float(log_px.std(ddof=1) / np.sqrt(n))
                    if not tail:
                        metrics |= {
                            f"{split}/log_px_digit_{d}": float(log_px[labels == d].mean()) for d in range(CLASSES)
                        }
                        metrics |= {POSTERIOR_ELBO.at(split): float(log_px.mean() - 8), f"{split}/ess": 120.0}
                        metrics |= {f"{split}/log_px_constant": float((-160.0 + noise).mean())}
                        metrics |= {f"{split}/accuracy_original": 0.98, f"{split}/accuracy_reconstruction": 0.94}
                        metrics |= {f"{split}/class_preservation": 1 - 1 / n}
                        metrics |= {f"{split}/class_preservation_low": 1 - 3 / n}
                        metrics |= {f"{split}/class_preservation_high": 1.0}
            table = pd.concat(frames)
            if trust:
                metrics |= {"simulated/bias": 0.3, "simulated/bias_se": 0.1} if model in PARETO_K else {}
                metrics |= trust_files(table, model, files) | quality_metrics(model, cnn)
            if trust and model == "vae":
                own = table.query("split == 'test'")
                frames.append(own.assign(posterior="fitted", elbo=own.log_px - 6, log_px=np.nan, std_err=np.nan))
                metrics |= {"test/fitted_posterior_elbo": float(own.log_px.mean() - 6)}
                metrics |= {"test/fitted_accuracy_reconstruction": 0.96, "test/fitted_class_preservation": 0.97}
                metrics |= {"test/fitted_class_preservation_low": 0.9, "test/fitted_class_preservation_high": 1.0}
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
            "samples": str(samples),
            "images": str(n),
            "seed": "0",
            "posterior": POSTERIORS.get(model, ""),
            **({"cnn_run": cnn, "cnn_test_accuracy": "0.98"} if cnn and model != "cnn" else {}),
        }
        if trust and model in PARETO_K:
            tags |= {"ais": "16 chains, 1000 distributions, from prior", "local_optimisation": "1000 Adam steps"}
        marks = [RunTag(f"evaluation.{key}", value) for key, value in tags.items() if value]
        self.client.log_batch(run, [Metric(key, value, self.clock, 0) for key, value in metrics.items()], tags=marks)
        self.client.log_artifacts(run, str(files), "evaluation")


def trust_files(table: pd.DataFrame, model: str, files: Path) -> dict[str, float]:
    """Leave bounds by samples and inference gaps of the evaluated images beside their likelihoods; give the metrics."""
    if model not in PARETO_K:
        return {}
    metrics: dict[str, float] = {}
    bounds, random = [], np.random.default_rng(5)
    for split, posterior in table[["split", "posterior"]].drop_duplicates().values.tolist():
        part = table.query("split == @split and posterior == @posterior")
        k, tail = part["pareto_k"].to_numpy(), "_table" if posterior == "table" else ""
        metrics |= {f"{split}/pareto_k{tail}": float(np.median(k))}
        metrics |= {f"{split}/unreliable{tail}": float((k > 2 / 3).mean())}
        for place, samples in enumerate((1, 10, 100, 1000)):
            mean = part["log_px"].mean() - 8 + 8 * place / 3
            row = {"split": split, "posterior": posterior, "samples": samples, "log_px": mean}
            bounds.append(row | {"log_px_se": part["log_px"].sem()})
    gaps = table.query("split != 'val'")[["index", "split", "label", "posterior"]].reset_index(drop=True)
    gaps["log_px_is"] = table.query("split != 'val'")["log_px"].to_numpy()
    gaps["log_px_ais"] = gaps["log_px_is"] + random.normal(1, 1, len(gaps))
    gaps["log_px"] = gaps[["log_px_ais", "log_px_is"]].max(axis=1)
    gaps["elbo_best"] = gaps["log_px"] - random.uniform(3, 5, len(gaps))
    gaps["elbo"] = gaps["elbo_best"] - random.uniform(1, 2, len(gaps))
    gaps["approximation_gap"] = gaps["log_px"] - gaps["elbo_best"]
    gaps["amortization_gap"] = gaps["elbo_best"] - gaps["elbo"]
    gaps["inference_gap"] = gaps["log_px"] - gaps["elbo"]
    pd.DataFrame(bounds).to_parquet(files / "curve.parquet")
    gaps.to_parquet(files / "gap.parquet")
    bdmc = {"simulated/log_px_lower": -61.3, "simulated/log_px_upper": -60.9, "simulated/bdmc_gap": 0.4}
    for _, part in gaps.groupby(["split", "posterior"]):
        split, posterior = map(str, next(iter(zip(part["split"], part["posterior"], strict=True))))
        for column, metric in m.GAP_COLUMNS.items():
            key = (m.STORED[metric] if posterior == "table" else metric).at(str(split))
            bdmc |= dict(zip((key, f"{key}_se"), mean_se(part[column]), strict=True))
    return metrics | bdmc


def quality_metrics(model: str, cnn: str) -> dict[str, float]:
    """Invent what is left of a model's latent space and, where a cnn judges them, of its samples."""
    worse = 1 + len(model) / 10
    found = {"active_units": 10.0, "rate": 20 * worse, "distortion": 40 * worse, "aggregate_kl": 20 * worse - 2}
    metrics = {f"{split}/{key}": value for split in ("train", "val", "test") for key, value in found.items()}
    if cnn:
        floor = {"frechet_distance": 3.21, "kid": 0.0123, "kid_se": 0.0021}
        metrics |= {f"test/{key}_floor": value for key, value in floor.items()}
        metrics |= {f"test/{key}": value * 10 * worse for key, value in floor.items()}
        for key, value in {"precision": 0.9, "recall": 0.8, "density": 0.95, "coverage": 0.85}.items():
            metrics |= {f"test/{key}_floor": value, f"test/{key}": value / worse}
    return metrics


def fill(store: Store) -> dict[str, str]:
    """Log a complete set of runs, evaluated, and return their ids by model."""
    ids = {"zeros": store.train("latent_opt", latent_init="zeros", sigma=0.4, pictures=False)}
    ids["cnn"] = store.train("cnn", name="<script>alert(1)</script>")
    ids["vae"] = store.train("vae", sigma=0.4)
    ids["latent_opt"] = store.train("latent_opt", latent_init="pca", sigma=0.4)
    ids["ppca"] = store.train("ppca", sigma=0.4)
    for model in ("cnn", "vae", "latent_opt", "ppca"):
        store.evaluate(ids[model], model, ids["cnn"])
    return ids


@contextmanager
def served(folder: Path, tables: Path) -> Iterator[pytest.MonkeyPatch]:
    """A fresh sqlite store, copied from ``tables``, in a folder, which becomes the working folder."""
    copy_store(tables, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        for variable in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            patch.delenv(variable, raising=False)
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield patch
        mlflow.set_tracking_uri(before)


def signed(value: float, error: float = 0.1) -> str:
    """A number as the page writes it beside its error, which is not nothing."""
    places = max(0, min(2, 1 - math.floor(math.log10(float(f"{error:.1e}")))))
    return f"{value:.{places}f}".replace("-", "\u2212")


def spread(value: float, error: float) -> str:
    """A number with its error as the page writes them."""
    return f"{signed(value, error)} ± {signed(error, error)}"


def reproduce(store: Store, ids: dict[str, str]) -> str:
    """Log a reproduction, with its figure, of the vae and of a run that no other part of a report has; return it."""
    other = store.train("vae", kind="trial", pictures=False)
    rows = [
        (name, seed, run, 5, "test/log_px", value, 0.5, name == "vae")
        for name, seed, run, value in (
            ("vae", 0, ids["vae"], -52.0),
            ("vae", 1, other, -53.0),
            ("other", 0, other, -60.0),
        )
    ]
    names = ["training", "seed", "run", "epochs", "metric", "value", "std_err", "unreliable"]
    found = summarise(pd.DataFrame(rows, columns=names), ("test/log_px",), {"vae": {"test/log_px": -86.76}})
    line = Line(name="vae", x=(1, 5), y=(-70, -52.5), error=(0.5, 0.5), level=-86.76)
    chart = Chart(x="passes, counted", y="test log p(x), nats", lines=(line,), dotted="Somebody's")
    found |= {
        "name": "question",
        "question": "Does it?",
        "source": "Somebody 2016",
        "command": "elbolab study question",
    }
    found |= {"evaluation": {}, "seconds": 60.0, "commits": ["0123abc"], "devices": ["cpu"]}
    found |= {"chart": chart.model_dump(mode="json")}
    tags = {KIND: "study", REPRODUCTION: "true", "mlflow.runName": "question"}
    study = store.client.create_run(store.experiment, start_time=store.clock, tags=tags).info.run_id
    store.client.log_param(study, "study", "question")
    store.client.log_dict(study, found, FOUND)
    store.client.set_terminated(study)
    return other


def rows_of(page: str) -> list[list[list[str]]]:
    """The words of every table of numbers on a page: by table, row and cell."""
    found = re.findall(r"<table(?: class=\"sortable\")?>(.*?)</table>", page.partition("<section")[2], re.DOTALL)
    tables = [
        [
            [" ".join(html.unescape(re.sub(r"<[^>]+>", "", cell)).split()) for cell in re.findall(CELL, row, re.DOTALL)]
            for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
        ]
        for text in found
    ]
    # Confusion tables are pictures rather than tables of numbers.
    return [
        table for table in tables if not {"true", "original", "predicted", "reconstruction"} & {*table[0], *table[1]}
    ]
