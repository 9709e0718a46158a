"""Folders that cannot be written, odd names of folders, databases that are none, a clock that goes backwards."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest
from conftest import free_port
from mlflow.exceptions import MlflowException

from elbolab.cli import cli
from elbolab.config.schema import CompareConfig, ExploreConfig, MainConfig
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.support.sqlite import first_use
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.journal import Journal
from elbolab.tracking.uploader import refused

TINY = ["--train-size", "40", "--val-size", "10", "--test-size", "10"]


def use(url: str) -> None:
    with first_use(url):
        pass


def as_nobody(folder: Path, url: str) -> str:
    """What a user who may not write to ``folder`` is told there by a command's settings, the store and a training."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        told = []
        # Permission bits do not bind root.
        if os.getuid() == 0:
            os.setuid(65534)
        for action in (
            lambda: CompareConfig.parse({"out": str(folder / "new")}),
            lambda: use(url),
            lambda: Journal(folder / "unfinished" / "run"),
        ):
            try:
                action()
            except Exception as error:
                told.append(str(error))
        os.write(writing, "\n".join(told).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as stream:
        return stream.read()


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, mode: int):
    for parent in tmp_path.parents:
        if parent.owner() == tmp_path.owner() and parent.is_relative_to(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(mode)
    out, store, training = as_nobody(tmp_path, f"sqlite:///{tmp_path}/mlflow.db").splitlines()
    assert out.startswith(f"out='{tmp_path}/new': should be where files can be written, but {tmp_path} is no folder")
    assert store == (
        f"the database {tmp_path}/mlflow.db cannot be written; name one in a folder that exists and can be"
    )
    assert re.fullmatch(
        rf"{tmp_path}/unfinished/run cannot be written: .*Permission denied.*; work in a folder that can be", training
    )


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    for kind, out in ((CompareConfig, file), (CompareConfig, file / "a" / "b"), (MainConfig, file / "a")):
        with pytest.raises(UserError, match=f"but {file} is no folder"):
            kind.parse({"out": out})
    with pytest.raises(UserError, match=f"but {file} is no folder"):
        ExploreConfig.parse({"out": file / "page.html"})
    with pytest.raises(UserError, match="should be a file, not a folder"):
        ExploreConfig.parse({"out": tmp_path})
    with pytest.raises(UserError, match="cannot be written; name one in a folder that exists"):
        use(f"sqlite:///{file}/mlflow.db")
    assert ExploreConfig.parse({"out": file}).out == file


def test_an_output_that_cannot_be_written_is_refused_before_the_work(store: Path):
    (store / "file").touch()
    with pytest.raises(UserError, match="out='file/report': should be where files can be written"):
        cli(["main", "--out", "file/report"], standalone_mode=False)
    assert not mlflow.MlflowClient().search_runs(["0"])


@pytest.mark.parametrize("kind", ["a folder", "another file"])
def test_what_is_no_database_is_left_as_it_is(tmp_path: Path, kind: str):
    path = tmp_path / "mlflow.db"
    if kind == "a folder":
        path.mkdir()
    else:
        path.write_text("notes")
    with pytest.raises(UserError, match=r"mlflow\.db is no SQLite database; move it away, or name another one"):
        use(f"sqlite:///{path}")
    assert path.is_dir() or path.read_text() == "notes"


def set_version(path: Path, version: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        connection.commit()


@pytest.mark.parametrize("version", ["cbc13b556ace", "0123456789ab"], ids=["older", "newer"])
def test_a_store_of_another_version_is_said_at_once(store: Path, version: str, capsys: pytest.CaptureFixture[str]):
    shutil.copy(store / "mlflow.db", store / "other.db")
    set_version(store / "other.db", version)
    mlflow.set_tracking_uri("sqlite:///other.db")
    before, lines = time.monotonic(), []
    for action in (
        lambda: cli(["vae", *TINY], standalone_mode=False),
        lambda: compare(CompareConfig()),
        lambda: mlflow_reader.get_run("0" * 32),
    ):
        with pytest.raises(
            UserError, match=r"tables of another MLflow than [\d.]+: copy it and run `(.*)`, or"
        ) as told:
            action()
        lines.append(str(told.value))
    # No training was begun, nor is anything left to be sent. As an outage it took 45 seconds.
    assert time.monotonic() - before < 15
    assert "epoch 1" not in capsys.readouterr().err
    assert not (store / "unfinished").exists()
    assert lines[1:] == [lines[1]] * 2
    assert lines[0].endswith(lines[1])
    assert "`mlflow db upgrade sqlite:///other.db`" in lines[1]


@pytest.mark.parametrize(
    "address",
    ["foo://x", "localhost:5000", "sqlite://m.db", "sqlite:/m.db", "mlruns", "mysql://host/x", "sqlite:///torn"],
)
def test_an_address_that_can_never_answer_is_no_outage(unused_store: Path, address: str):
    (unused_store / "torn").write_bytes(b"SQLite format 3\0" + bytes(200))
    mlflow.set_tracking_uri(address)
    before = time.monotonic()
    with (
        pytest.raises(UserError, match=r"cannot be the tracking store: .*; name another|no SQLite database"),
        tracking.start_run("train", "x", {}, {}),
    ):
        pytest.fail("it began")
    assert time.monotonic() - before < 5
    assert not (unused_store / "unfinished").exists()


def test_a_database_server_that_is_down_is_an_outage(unused_store: Path):
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'elbolab[postgresql]'")
    mlflow.set_tracking_uri(f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/x")
    with pytest.raises(MlflowException, match="refused") as told:
        mlflow_reader.prepare_store()
    assert not refused(told.value)
    assert "secret" not in str(told.value)


# The clock goes back an hour once the first checkpoint is there.
CLOCK = """
import time
from pathlib import Path
_true, _back = time.time, []
def _time():
    if not _back and any(Path("unfinished").glob("*/best.safetensors")):
        _back.append(3600)
    return _true() - sum(_back)
time.time = _time
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder of an odd name, and the run that was trained in it, by MLflow's defaults, while the clock went back."""
    folder = tmp_path_factory.mktemp("odd") / "my work's 100%20 ü 日"
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "sitecustomize.py").write_text(CLOCK)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")])
    options = ["--net", "mlp", "--hidden", "8", "--latent-dim", "2", "--epochs", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "elbolab", "vae", *options, *TINY],
        cwd=folder,
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{quote(str(folder / 'mlflow.db'))}")
    yield folder, done.stdout.split()[-1]
    mlflow.set_tracking_uri(before)


def test_a_folder_of_any_name_holds_store_and_report(odd: tuple[Path, str]):
    """Spaces, a quote, a percent sign and other scripts."""
    folder, run_id = odd
    assert (folder / "mlflow.db").exists()
    page = compare(CompareConfig.parse({"run": (run_id,), "out": str(folder / "ré port")}))
    assert page == folder / "ré port" / "index.html"
    assert run_id[:8] in page.read_text()


def test_a_clock_that_goes_back_an_hour_loses_no_epoch(odd: tuple[Path, str]):
    _, run_id = odd
    run = mlflow.MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time is not None
    assert run.info.end_time < run.info.start_time - 3_000_000
    history = mlflow_reader.history([run_id])
    assert all(sorted(part.step) == [1, 2, 3, 4, 5] for _, part in history.groupby("key"))
    assert (history[history.key == "train/images_per_s"].value > 0).all()
    last = history[(history.key == "val/elbo") & (history.step == 5)].value.item()
    assert run.data.metrics["val/elbo"] == last


def test_a_clock_that_goes_back_makes_no_negative_duration(odd: tuple[Path, str]):
    assert mlflow_reader.get_run(odd[1]).seconds >= 0


def test_a_commit_is_that_of_the_code_and_not_of_what_lies_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        return subprocess.check_output(["git", *who, *arguments], cwd=tmp_path, text=True).strip()

    code = tmp_path / "site-packages" / "tracker.py"
    code.parent.mkdir()
    code.touch()
    git("init")
    git("commit", "--allow-empty", "--message", "something else")
    monkeypatch.setattr(tracking, "CODE", code)
    assert tracking.code_tags() == {}
    git("add", "site-packages")
    git("commit", "--message", "the code")
    assert tracking.code_tags() == {"git.commit": git("rev-parse", "HEAD"), "git.dirty": "false"}
