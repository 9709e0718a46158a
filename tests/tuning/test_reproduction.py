"""Reproductions: listed trainings, done once, beside published numbers, in MLflow and in the documentation."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import Command

from elbolab import Chart, Line, Reproduction, Training
from elbolab.config.schema import CompareConfig, EvaluateConfig, StudyConfig
from elbolab.experiment.evaluate import evaluate_run
from elbolab.report.compare import compare
from elbolab.report.plots import chart_png
from elbolab.report.sections.reproductions import cell
from elbolab.support.errors import UserError
from elbolab.support.number_formats import DAGGER, MINUS, UNRELIABLE
from elbolab.support.statistics import mean_and_half_width
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.journal import Journal
from elbolab.tracking.keys import STUDY
from elbolab.tracking.offline import free_trainings
from elbolab.training.trainer import Event
from elbolab.tuning.command import load_study, run_study

TEXT = """
from elbolab import Chart, Line, Reproduction, Training
from elbolab.evaluation import Results

def twice(evaluation):
    return Results({"test/batches_2": 2.0 * len(list(evaluation.batches("test")))})

def draw(table):
    own = table[(table.metric == "test/log_px") & (table.training == "short")]
    if own.empty:
        return None
    line = Line(name="short", x=own.seed + 1, y=own.value, error=own.std_err, level=-86.76)
    return Chart(x="seed", y="test log p(x), nats", lines=[line], dotted="somebody's")

STUDY = Reproduction(
    question="Does the exact model win?",
    base={"epochs": 2, "train_size": 40, "val_size": 10, "test_size": 10, "latent_dim": 3},
    trainings={"exact": Training(model="ppca"), "short": Training(model="vae", fields={"epochs": 1})},
    seeds=(0, 1),
    evaluation={"method": "importance", "samples": 20, "images": 10},
    metrics=("test/log_px", "test/batches_2"),
    references={"short": {"test/log_px": -86.76}},
    source="Somebody 2016, table 1",
    evaluators=(twice,),
    figure=draw,
)
"""


@pytest.fixture
def study(store: Path) -> str:
    (store / "studies").mkdir()
    (store / "studies" / "question.py").write_text(TEXT)
    (store / "docs").mkdir()
    (store / "docs" / "results.md").write_text("# Results\n\n<!-- study question -->\n<!-- end question -->\n\nmore\n")
    return "question"


def test_a_reproduction_is_trained_once_and_says_what_it_found(study: str, store: Path):
    first, second = (run_study(study, StudyConfig()) for _ in range(2))
    trained = mlflow_reader.find_runs("train")
    # The second call finds what the first finished.
    assert len(trained) == 4
    found = json.loads(artifacts.read(second, "reproduction.json", Path.read_text))
    assert found == json.loads(artifacts.read(first, "reproduction.json", Path.read_text))
    rows = {row["training"]: row for row in found["rows"]}
    values = [run.metrics["test/log_px"] for run in trained if run.params["model"] == "vae"]
    mean, half = mean_and_half_width(values)
    figure = rows["short"]["figures"]["test/log_px"]
    assert (figure["mean"], figure["error"]) == pytest.approx((mean, half))
    assert figure["reference"] == -86.76
    assert rows["exact"]["figures"]["test/batches_2"]["mean"] == 2
    # A closed form owes nothing to its seed.
    assert rows["exact"]["figures"]["test/log_px"]["error"] == pytest.approx(0, abs=1e-6)
    assert artifacts.list_artifacts(second, "figures") == ["figures/question.png"]
    page = (store / "docs" / "results.md").read_text()
    assert page.startswith("# Results\n\n<!-- study question -->\n`elbolab study question`: seeds 0, 1, commit ")
    seeds = sorted(trained, key=lambda run: run.params["seed"])
    start, end = (run.metrics["test/log_px"] for run in seeds if run.params["model"] == "vae")
    alt = f"test log p(x), nats, by seed: short from {start:.2f} at 1 to {end:.2f} at 2, dotted -86.76"
    assert page.endswith(f"![{alt}](question.png)\n<!-- end question -->\n\nmore\n")
    # Twenty samples leave no k, so that the estimate is marked; what is exact is not.
    # So wide an interval leaves no decimals.
    assert half > 10
    assert f"| short | 1 | {mean:.0f} ± {half:.0f}{DAGGER} | -86.76 | 2.00 ± 0 |" in page
    assert re.search(r"\| exact \| 2 \| -[\d.]+ ± 0 \|", page)
    assert f"\n\n{UNRELIABLE}\n\n![" in page
    assert "Reported: Somebody 2016, table 1." in page
    assert (store / "docs" / "question.png").stat().st_size > 5000
    out = compare(CompareConfig(out=store / "report"))
    html, text = out.read_text(), (store / "report" / "report.md").read_text()
    assert "<h2>Reproductions</h2>" in html
    assert html.count("Does the exact model win? elbolab study question: seeds 0, 1") == 2
    assert f"| short | 1 | `{rows['short']['runs'][0][:8]}`" in text
    assert f"{mean:.0f} ± {half:.0f}{DAGGER} | -86.76 |".replace("-", MINUS) in text
    section = html[html.index("<h2>Reproductions</h2>") : html.index("<h2>Runs</h2>")]
    assert html.count("\u2020 Unreliable: ") == 1
    (drawn,) = re.findall(r'<svg role="img" aria-label="([^"]*)"', section)
    assert drawn == alt
    assert "<img" not in section
    assert "Bars: one standard error. Dotted: somebody&#39;s." in section
    assert "Reported: Somebody 2016, table 1." in (store / "report" / "tables.tex").read_text()
    parents = {mlflow.get_run(run.id).data.tags["mlflow.parentRunId"] for run in trained}
    assert parents == {first}


def test_a_training_that_was_interrupted_is_gone_on_with(
    study: str, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    report = tracking.RunWriter.report

    def interrupted(self: tracking.RunWriter, event: Event) -> None:
        report(self, event)
        if event.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking.RunWriter, "report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, StudyConfig(only=("short",)))
    (begun,) = mlflow_reader.find_runs(status="KILLED")
    # Of another study's or of one that a process is at there is nothing to go on with.
    assert [run for run, _ in free_trainings({STUDY: study})] == [begun.id]
    assert list(free_trainings({STUDY: "another"})) == []
    (folder,) = (store / "unfinished").iterdir()
    held = Journal(folder)
    assert list(free_trainings({STUDY: study})) == []
    held.close(remove=False)
    run_study(study, StudyConfig(only=("short",)))
    assert f"resuming short, run {begun.id[:8]}" in capsys.readouterr().err
    runs = mlflow_reader.find_runs(status=None)
    assert {run.status for run in runs} == {"FINISHED"}
    assert sorted(run.params["seed"] for run in runs) == ["0", "1"]
    assert begun.id in {run.id for run in runs}


def test_a_training_that_was_interrupted_and_deleted_is_done_anew(
    study: str, store: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(*arguments: Any) -> None:
        raise RuntimeError("the roof came down")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.RunWriter, "report", fails)
        with pytest.raises(RuntimeError, match="the roof"):
            run_study(study, StudyConfig(only=("exact",)))
    (begun,) = mlflow_reader.find_runs(status="FAILED")
    mlflow.MlflowClient().delete_run(begun.id)
    run_study(study, StudyConfig(only=("exact",)))
    assert len(mlflow_reader.find_runs()) == 2


def test_fewer_passes_are_another_training(study: str, store: Path):
    parent = run_study(study, StudyConfig(passes=1, only=("s*",)))
    assert {(run.params["model"], run.params["epochs"]) for run in mlflow_reader.find_runs("train")} == {("vae", "1")}
    page = (store / "docs" / "results.md").read_text()
    assert "`elbolab study question --passes 1 --only 's*'`: seeds 0, 1" in page
    assert "; evaluated with method importance, samples 20, images 10; ± is" in page
    rows = json.loads(artifacts.read(parent, "reproduction.json", Path.read_text))["rows"]
    assert [(row["training"], row["epochs"]) for row in rows] == [("short", 1)]
    with pytest.raises(UserError, match=r"only=gan names no training; there are: exact, short"):
        run_study(study, StudyConfig(only=("gan",)))
    assert len(mlflow_reader.find_runs("train")) == 2


def test_a_part_of_a_study_leaves_the_table_of_the_whole(study: str, store: Path):
    page, picture = store / "docs" / "results.md", store / "docs" / "question.png"

    def after(**limits: Any) -> str:
        run_study(study, StudyConfig.parse(limits))
        return page.read_text()

    # What is there is as much at first, and is replaced by more.
    one = after(only=("short",))
    assert "`elbolab study question --only short`" in one
    whole = after()
    assert "`elbolab study question`" in whole
    picture.write_bytes(b"of the whole")
    for limits in ({"passes": 1}, {"only": ("exact",)}, {"only": ("short",)}):
        assert after(**limits) == whole
    assert picture.read_bytes() == b"of the whole"
    for mean in re.findall("(-[0-9.]+) ±", whole):
        page.write_text(page.read_text().replace(mean, "-1.00"))
    assert after() == whole
    assert picture.read_bytes() != b"of the whole"


def test_runs_of_changed_code_are_said_so(study: str, store: Path):
    run_study(study, StudyConfig(only=("exact",)))
    for run in mlflow_reader.find_runs("train"):
        dirty = str(run.params["seed"] == "1").lower()
        for key, value in {"git.commit": "0123456789", "git.dirty": dirty}.items():
            mlflow.MlflowClient().set_tag(run.id, key, value)
    run_study(study, StudyConfig(only=("exact",)))
    assert "commit 0123456, 0123456 with changes, " in (store / "docs" / "results.md").read_text()


def test_code_is_changed_by_what_changes_in_the_package(store: Path, monkeypatch: pytest.MonkeyPatch):
    package = store / "src" / "elbolab"
    package.mkdir(parents=True)
    (package / "tracker.py").write_text("")
    (store / "results.md").write_text("")
    git = ["git", "-C", str(store), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(tracking, "CODE", package / "tracker.py")
    dirty = []
    for changed in (store / "results.md", package / "tracker.py"):
        changed.write_text("changed")
        with tracking.start_run("study", "any", {}, {}) as track:
            pass
        dirty.append(mlflow_reader.get_run(track.id).tags["git.dirty"])
    assert dirty == ["false", "true"]


def test_trainings_that_fewer_passes_make_equal_are_one(study: str, store: Path):
    file = store / "studies" / "question.py"
    file.write_text(TEXT.replace('"exact": Training(model="ppca")', '"long": Training(model="vae")'))
    parent = run_study(study, StudyConfig(passes=1))
    assert len(mlflow_reader.find_runs("train")) == 2
    rows = json.loads(artifacts.read(parent, "reproduction.json", Path.read_text))["rows"]
    assert [row["training"] for row in rows] == ["long"]


def test_a_reproduction_says_what_is_wrong_before_it_trains(study: str, store: Path):
    file = store / "studies" / "question.py"
    for wrong, said in (
        (('model="vae"', 'model="gan"'), "training 'short': model='gan' does not exist"),
        (('{"epochs": 1}', '{"epochs": 0}'), "epochs=0"),
        (('{"short": {"test', '{"long": {"test'), "references name long"),
        (('"samples": 20', '"sample": 20'), r"evaluation\.sample is not a parameter$"),
        (('question="Does the exact model win?",', ""), "question must be given"),
        (('"epochs": 2', '"epoch": 2'), "base has epoch, which no training has"),
        (('"epochs": 2', '"epochs": 2, "seed": 3'), "give seeds"),
        (("seeds=(0, 1)", "seeds=(1, 1)"), r"seeds=\(1, 1\) has one twice"),
        (("seeds=(0, 1)", "seeds=()"), "seeds=\\(\\)"),
        (('{"epochs": 1}', '{"dataset": "npz:{later}"}'), "training 'short' needs the run of 'later'"),
    ):
        file.write_text(TEXT.replace(*wrong))
        with pytest.raises(UserError, match=said):
            load_study(study)
    file.write_text(TEXT)
    with pytest.raises(UserError, match=r"takes no trials; it takes only, passes"):
        run_study(study, StudyConfig(trials=3))


def test_a_training_may_start_from_an_earlier_one_of_its_seed(study: str):
    _, definition = load_study(study)
    assert isinstance(definition, Reproduction)
    again = Training(model="vae", fields={"dataset": "npz:{short}"})
    changed = definition.model_copy(update={"trainings": {**definition.trainings, "again": again}})
    assert changed.config("again", 1, {"short": "abc"}).dataset == "npz:abc"


def test_a_run_that_was_evaluated_otherwise_is_evaluated_again(study: str):
    parent = run_study(study, StudyConfig(only=("exact",)))
    before = json.loads(artifacts.read(parent, "reproduction.json", Path.read_text))
    (run, *_) = before["rows"][0]["runs"]
    evaluate_run(run, EvaluateConfig(images=5, budget=1))
    assert "test/batches_2" not in mlflow_reader.get_run(run).metrics
    again = run_study(study, StudyConfig(only=("exact",)))
    after = json.loads(artifacts.read(again, "reproduction.json", Path.read_text))
    assert after["rows"] == before["rows"]
    assert mlflow_reader.get_run(run).tags["evaluation.images"] == "10"


def test_the_command_prints_the_run(study: str, command_here: Command):
    done = command_here("study", study, "--passes", "1", "--only", "short")
    assert done.returncode == 0, done.stderr
    assert mlflow_reader.get_run(done.stdout.strip()).status == "FINISHED"
    assert command_here("study", study, "--trials", "2").returncode == 2


@pytest.mark.parametrize("error", [None, float("nan")])
def test_a_mean_without_an_error_has_the_decimals_of_a_density(error: float | None):
    row = {"figures": {"test/posterior_elbo": {"mean": -93.76149, "error": error}}}
    assert cell(row, "test/posterior_elbo", "measured") == "-93.76"


def test_a_chart_of_names_has_a_name_for_every_place():
    line = Line(name="vae", x=(1, 2), y=(-90.0, -80.0), error=(1.0, 2.0))
    shown = Chart(x="prior", y="test log p(x), nats", lines=(line,), names=("normal", "flow"))
    assert shown.alt == "test log p(x), nats, by prior: vae from -90.00 (normal) to -80.00 (flow)"
    assert Chart.parse(shown.model_dump(mode="json")) == shown
    assert chart_png(shown)[1:4] == b"PNG"
    with pytest.raises(UserError, match="x=2 has no name; give whole numbers from 1 to 1"):
        Chart.parse({"x": "prior", "y": "nats", "lines": [line.model_dump()], "names": ["normal"]})
