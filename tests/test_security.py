"""What others wrote is data: nothing of it runs, leaves its folder or becomes markup, and no password is kept."""

import json
import math
import os
import pickle
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import complaints, free_port, wait_for_server
from safetensors.torch import load_file, save_file

from elbolab import load_model
from elbolab.config.schema import CompareConfig, EvaluateConfig, ExploreConfig
from elbolab.data.splits import load_data
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import train_model
from elbolab.explorer.page import explore
from elbolab.models import MODELS
from elbolab.registry.versions import register
from elbolab.report.compare import compare
from elbolab.report.sections.reproductions import FOUND
from elbolab.support.errors import UserError, redacted
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking.keys import REPRODUCTION
from elbolab.training.checkpoint import load_checkpoint

TINY: dict[str, Any] = {"train_size": 20, "val_size": 10, "test_size": 10, "epochs": 1, "latent_dim": 2}
HEADER = "elbolab"
RUN = "0" * 32


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str, str], Any], tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a store in it, and an evaluated run there."""
    before, folder = mlflow.get_tracking_uri(), tmp_path_factory.mktemp("security")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        run = train_model("vae", MODELS["vae"].Config.parse(TINY))
        evaluate_run(run, EvaluateConfig(method="importance", samples=5, images=10))
        yield folder, run
    mlflow.set_tracking_uri(before)


@pytest.fixture
def model_folder(trained: tuple[Path, str]) -> Path:
    """Where the trained model lies on this machine."""
    (found,) = trained[0].glob("mlruns/**/MLmodel")
    return found.parent


@pytest.fixture
def planted(trained: tuple[Path, str], model_folder: Path, tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Puts a trap in place of a file for the length of a test; gives the path of what it would make."""
    kept: list[tuple[Path, Path]] = []
    marker = tmp_path / "marker"

    def plant(file: Path) -> Path:
        if file.exists():
            kept.append((file, tmp_path / f"kept-{len(kept)}"))
            shutil.copy(file, kept[-1][1])
        else:
            kept.append((file, tmp_path / "nothing"))
        file.write_bytes(pickle.dumps(Trap(marker)))
        return marker

    yield plant
    for file, copy in reversed(kept):
        file.unlink()
        if copy.exists():
            shutil.copy(copy, file)


def elbolab(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    command = [sys.executable, "-m", "elbolab", *arguments]
    environment = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def artifact_folder(run: str) -> Path:
    """Where the artifacts of a run lie on this machine."""
    return Path(str(mlflow.get_run(run).info.artifact_uri).removeprefix("file://"))


def test_a_trap_works(tmp_path: Path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


def test_a_pickle_in_place_of_the_weights_is_refused(
    trained: tuple[Path, str], model_folder: Path, planted: Callable[[Path], Path]
):
    folder, run = trained
    marker = planted(model_folder / "artifacts" / "best.safetensors")
    with pytest.raises(UserError, match=r"best\.safetensors is not a checkpoint of elbolab"):
        load_model(run)
    torch.save(Trap(marker), model_folder / "artifacts" / "best.safetensors")
    done = elbolab(folder, "evaluate", run, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"elbolab: .*best\.safetensors is not a checkpoint of elbolab: .*\n", done.stderr)
    assert not marker.exists()


def test_pickles_and_code_beside_the_weights_are_not_touched(
    trained: tuple[Path, str], model_folder: Path, planted: Callable[[Path], Path]
):
    for name in ("python_model.pkl", "artifacts/other.pkl", "code/elbolab/serving.py", "MLmodel"):
        marker = planted(model_folder / name)
    model = load_model(trained[1])
    assert model.config.params() == MODELS["vae"].Config.parse(TINY).params()
    assert not marker.exists()


def test_a_registered_model_executes_nothing_either(
    trained: tuple[Path, str], model_folder: Path, planted: Callable[[Path], Path]
):
    uri = register(trained[1], "planted")
    marker = planted(model_folder / "python_model.pkl")
    assert load_model(uri).config.params() == MODELS["vae"].Config.parse(TINY).params()
    planted(model_folder / "artifacts" / "best.safetensors")
    with pytest.raises(UserError, match=r"best\.safetensors is not a checkpoint of elbolab"):
        load_model(uri)
    assert not marker.exists()


def test_a_model_without_weights_is_refused(trained: tuple[Path, str], model_folder: Path, tmp_path: Path):
    weights = model_folder / "artifacts" / "best.safetensors"
    weights.rename(tmp_path / weights.name)
    try:
        with pytest.raises(UserError, match="has no trained model on"):
            load_model(trained[1])
    finally:
        shutil.move(tmp_path / weights.name, weights)


def test_a_dataset_of_objects_is_refused(tmp_path: Path):
    objects = np.array([Trap(tmp_path / "marker")] * 5, dtype=object)
    np.savez(tmp_path / "objects.npz", images=objects, labels=objects)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(objects))
    for name in ("objects", "pickle"):
        with pytest.raises(UserError, match=rf"npz:.*{name}\.npz cannot be read as an npz file of plain arrays"):
            load_data(f"npz:{tmp_path}/{name}.npz", Path())
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "name",
    ["evaluation/likelihood.parquet", "evaluation/classes.json", "evaluation/examples.npz", "evaluation/curve.parquet"],
)
def test_a_pickle_among_what_a_report_is_made_of_is_refused(
    trained: tuple[Path, str], planted: Callable[[Path], Path], tmp_path: Path, name: str
):
    marker = planted(artifact_folder(trained[1]) / name)
    # No cnn judged the run, and a file that its evaluation does not claim is not read.
    claim = partial(mlflow.MlflowClient().log_metric, trained[1], "test/class_preservation")
    claim(1.0)
    with pytest.raises(UserError, match=rf"artifact '{name}' of run {trained[1]} cannot be read"):
        compare(CompareConfig(run=(trained[1],), out=tmp_path / "report"))
    claim(math.nan)
    assert not marker.exists()
    assert not (tmp_path / "report").exists()


def test_a_pickle_in_place_of_a_picture_is_refused(
    trained: tuple[Path, str], planted: Callable[[Path], Path], tmp_path: Path
):
    picture = next(artifact_folder(trained[1]).glob("images/samples*.png"))
    marker = planted(picture)
    with pytest.raises(UserError, match="is no picture"):
        compare(CompareConfig(out=tmp_path / "report"))
    assert not marker.exists()


def test_objects_within_tables_and_arrays_stay_bytes(
    trained: tuple[Path, str], planted: Callable[[Path], Path], tmp_path: Path
):
    evaluation = artifact_folder(trained[1]) / "evaluation"
    marker = planted(evaluation / "examples.npz")
    np.savez(evaluation / "examples.npz", index=np.array([Trap(marker)], dtype=object))
    with pytest.raises(UserError, match=r"examples\.npz' of run .* Object arrays cannot be loaded"):
        compare(CompareConfig(run=(trained[1],), out=tmp_path / "report"))
    planted(evaluation / "examples.npz")
    shutil.copy(tmp_path / "kept-0", evaluation / "examples.npz")
    # Arrow had a type that came back from a file by unpickling.
    planted(evaluation / "curve.parquet")
    table = pq.read_table(tmp_path / "kept-2")
    trap = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Trap(marker))}
    field = pa.field("trap", pa.int64(), metadata=trap)
    table = table.append_column(field, pa.array(range(len(table)), pa.int64()))
    pq.write_table(table, evaluation / "curve.parquet")
    assert compare(CompareConfig(run=(trained[1],), out=tmp_path / "report")).exists()
    assert not marker.exists()


def _spoilt(header: Any) -> dict[str, Any]:
    """Headers that no checkpoint has, by what is wrong with them."""
    config, spec = header["config"], header["spec"]
    return {
        "no dict": [header],
        "a word": "vae",
        "null": None,
        "unknown model": {**header, "model": "gan"},
        "a model that is a list": {**header, "model": ["vae"]},
        "no model": {key: value for key, value in header.items() if key != "model"},
        "no config": {key: value for key, value in header.items() if key != "config"},
        "no spec": {key: value for key, value in header.items() if key != "spec"},
        "a config that is a list": {**header, "config": [1]},
        "an unknown field": {**header, "config": {**config, "__class__": "os.system"}},
        "a field out of bounds": {**header, "config": {**config, "latent_dim": -1}},
        "another size": {**header, "config": {**config, "latent_dim": 3}},
        "a huge size": {**header, "config": {**config, "latent_dim": 10**9}},
        "a spec that is a list": {**header, "spec": [1, 2]},
        "a shape that is a word": {**header, "spec": {**spec, "shape": "large"}},
        "a flat shape": {**header, "spec": {**spec, "shape": [784]}},
        "a shape of words": {**header, "spec": {**spec, "shape": ["a", "b", "c"]}},
        "an empty shape": {**header, "spec": {**spec, "shape": [0, 0, 0]}},
        "a negative shape": {**header, "spec": {**spec, "shape": [1, -28, -28]}},
        "a huge shape": {**header, "spec": {**spec, "shape": [1, 10**6, 10**6]}},
        "an endless shape": {**header, "spec": {**spec, "shape": [1, 10**40, 10**40]}},
    }


def test_a_header_is_believed_only_as_far_as_the_weights_bear_it_out(model_folder: Path, tmp_path: Path):
    original = model_folder / "artifacts" / "best.safetensors"
    with original.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(json.loads(stream.read(size))["__metadata__"][HEADER])
    weights, file = load_file(original), tmp_path / "spoilt.safetensors"
    texts = {name: json.dumps(spoilt) for name, spoilt in _spoilt(header).items()}
    texts |= {"no JSON": "{", "nothing": "", "endless lists": "[" * 100_000}
    for text in texts.values():
        save_file(weights, file, {HEADER: text})
        with pytest.raises(UserError, match=r"^.*spoilt\.safetensors is not a checkpoint of elbolab: .*$"):
            load_checkpoint(file)
    save_file(weights, file)
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_checkpoint(file)
    del weights[next(iter(weights))]
    save_file(weights, file, {HEADER: json.dumps(header)})
    with pytest.raises(UserError, match="its weights are not those of the vae that its header describes"):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("on http://user:TOKEN@host:5000/x and", "on http://***@host:5000/x and"),
        ("postgresql+psycopg://me:TO@KEN@host/db", "postgresql+psycopg://***@host/db"),
        ("'https://TOKEN@host'", "'https://***@host'"),
        ("a://u:TOKEN@b, c://u:TOKEN@d", "a://***@b, c://***@d"),
        ("postgresql://host/db?user=me&password=TOKEN&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("sqlite:////tmp/a@b/runs.db", "sqlite:////tmp/a@b/runs.db"),
        ("write to me@host about http://host/a", "write to me@host about http://host/a"),
    ],
)
def test_no_message_shows_a_password(text: str, shown: str):
    assert redacted(text) == str(UserError(text)) == shown


class Malicious(BaseHTTPRequestHandler):
    """An MLflow server with one run, whose artifacts are said to lie outside its folder."""

    listed = ""
    root = ""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.endswith("/mlflow/runs/get"):
            info = {"run_id": RUN, "run_uuid": RUN, "experiment_id": "0", "status": "FINISHED", "start_time": 1}
            info |= {"artifact_uri": self.root, "lifecycle_stage": "active"}
            body: Any = {"run": {"info": info, "data": {}, "outputs": {"model_outputs": [{"model_id": "m-1"}]}}}
        elif path.endswith("/mlflow/logged-models/m-1"):
            body = {"model": {"info": {"model_id": "m-1", "experiment_id": "0", "artifact_uri": self.root}}}
        elif path.endswith("/mlflow-artifacts/artifacts"):
            body = {"files": [{"path": self.listed, "is_dir": False, "file_size": 4}]}
        elif "/mlflow-artifacts/artifacts/" in path:
            body = "evil"
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def malicious(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Malicious]]:
    """Serves ``Malicious`` as the tracking server; what is downloaded goes two folders deep into the store's folder."""
    (store / "one" / "two").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(store / "one" / "two"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Malicious) as server:
        threading.Thread(target=server.serve_forever).start()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")
        yield Malicious
        server.shutdown()


@pytest.mark.parametrize("path", ["../../escaped", "../" * 8 + "tmp/escaped", "/escaped", "%2e%2e/%2e%2e/escaped"])
@pytest.mark.parametrize("root", ["mlflow-artifacts:/0/run/artifacts", "file://{store}/one/two/artifacts"])
def test_artifacts_stay_in_their_folder(store: Path, malicious: type[Malicious], path: str, root: str):
    malicious.listed, malicious.root = path, root.format(store=store)
    mlflow_reader.ARTIFACT_URIS.clear()
    (store / "one" / "two" / "artifacts").mkdir()
    (store / "one" / "escaped").write_text("of another folder")
    with pytest.raises(UserError, match="has no artifact"):
        artifacts.read(RUN, path, Path.read_bytes)
    with pytest.raises(UserError, match=r"has no trained model|is not a checkpoint"):
        load_model(RUN)
    if root.startswith("mlflow-artifacts"):
        with pytest.raises(UserError, match=r"cannot be listed .* Invalid path"):
            artifacts.step_images(RUN, "samples")
    assert [file.read_text() for file in store.rglob("*escaped*") if file.is_file()] == ["of another folder"]
    assert not list(Path("/tmp").glob("escaped"))


# What ends a string, a tag, a script, a comment or a line, and what LaTeX obeys.
EVIL = '<script>hacked=1</script><img src=x onerror="hacked=1">"</title></style>-->\u2028{{7*7}}\\input{x}$&#%_~^'
EVIL_TOO = EVIL.replace('"', "'")


@pytest.fixture(scope="module")
def evil(trained: tuple[Path, str]) -> str:
    """The run with names, tags and parameters that try to become markup, and a reproduction that does too."""
    client, run = mlflow.MlflowClient(), trained[1]
    for tag in ("mlflow.runName", "data.name", "device", "precision", "git.commit", "evaluation.posterior"):
        client.set_tag(run, tag, EVIL_TOO)
    client.set_tag(run, "observation_model", EVIL)
    client.log_param(run, "note", EVIL_TOO)
    tags = {mlflow_reader.KIND: "study", REPRODUCTION: "true", "mlflow.runName": EVIL}
    study = client.create_run("0", tags=tags).info.run_id
    client.log_param(study, "study", EVIL)
    row = {"training": EVIL, "epochs": EVIL, "runs": [run], "figures": {EVIL: {"mean": 1.5, "error": 0.1}}}
    row["figures"][EVIL]["reference"] = 1.0
    found = dict.fromkeys(("name", "question", "source", "command", "error"), EVIL)
    found |= {"metrics": [EVIL], "rows": [row], "evaluation": {EVIL: EVIL}, "seconds": 1.0}
    found |= {key: [EVIL] for key in ("seeds", "commits", "devices")}
    line = {"name": EVIL, "x": [1, 2], "y": [1, 2], "level": 1}
    chart = {"x": EVIL, "y": EVIL, "dotted": EVIL, "lines": [line]}
    client.log_dict(study, {**found, "chart": chart}, FOUND)
    client.set_terminated(study)
    return run


class Elements(HTMLParser):
    """What a page is made of: its tags with their attributes, and the text of all but its scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.words += data


def test_names_tags_and_parameters_become_no_elements(evil: str, tmp_path: Path):
    report = compare(CompareConfig(out=tmp_path / "report"))
    page = explore([evil], ExploreConfig(images=5, out=tmp_path / "explorer.html"))
    for file in (report, page):
        elements = Elements(file)
        assert EVIL_TOO in elements.words
        assert ("img", "x") not in [(tag, attributes.get("src")) for tag, attributes in elements.tags]
        assert not any(key.startswith("on") for _, attributes in elements.tags for key in attributes)
        # What a name says about a page's end or its scripts would be one more of each.
        assert [tag for tag, _ in elements.tags].count("title") == 1
        assert file.read_text().count("</script") == [tag for tag, _ in elements.tags].count("script")
    assert "<script" not in (tmp_path / "report" / "report.md").read_text()


def test_names_tags_and_parameters_stay_words(evil: str, browser: Any, tmp_path: Path):
    report = compare(CompareConfig(out=tmp_path / "report"))
    page = explore([evil], ExploreConfig(images=5, out=tmp_path / "explorer.html"))
    words = [" ".join(text.split()) for text in (EVIL, EVIL_TOO)]
    for file in (report, page):
        with browser.new_page() as view:
            problems = complaints(view)
            view.goto(file.as_uri())
            assert view.evaluate("typeof hacked") == "undefined"
            assert view.locator("img[src=x]").count() == 0
            shown = " ".join(view.locator("body").inner_text().split())
            assert words[1] in shown
            assert (words[0] in shown) or file == page
        assert problems == []
    assert "<script" not in (tmp_path / "report" / "report.md").read_text()
    latex = (tmp_path / "report" / "tables.tex").read_text()
    assert r"\textbackslash{}input\{x\}\$\&\#\%\_\textasciitilde{}\textasciicircum{}" in latex
    assert r"\input" not in latex


@pytest.fixture
def guarded(store: Path) -> Iterator[tuple[str, str]]:
    """Address of an MLflow server that asks for a password and allows one host, and the password of its admin."""
    pytest.importorskip("flask_wtf", reason="MLflow's authentication is not installed: pip install 'mlflow[auth]'")
    password, port, folder = secrets.token_hex(16), free_port(), store / "server"
    folder.mkdir()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--port", str(port)),
        *("--workers", "1", "--allowed-hosts", f"127.0.0.1:{port}"),
        *("--backend-store-uri", "sqlite:///runs.db", "--artifacts-destination", "kept"),
    ]
    # A password that was right is remembered, since to check it takes longer than most requests.
    settings = find_spec("mlflow.server.auth")
    assert settings is not None
    assert settings.origin is not None
    text = Path(settings.origin).with_name("basic_auth.ini").read_text()
    (store / "auth.ini").write_text(f"{text}\nauth_cache_ttl_seconds = 600\n")
    keys = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "secret", "MLFLOW_AUTH_ADMIN_PASSWORD": password}
    keys["MLFLOW_AUTH_CONFIG_PATH"] = str(store / "auth.ini")
    with (store / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **keys}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for_server(f"http://127.0.0.1:{port}", process)
            yield f"127.0.0.1:{port}", password
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


@pytest.mark.scale
def test_a_server_with_passwords_is_worked_with_and_none_is_kept(store: Path, guarded: tuple[str, str]):
    host, password = guarded
    said = []

    def run(uri: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = elbolab(store, *arguments, MLFLOW_TRACKING_URI=uri, **environment)
        said.append(done.stdout + done.stderr)
        return done

    user = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    tiny = ["--train-size", "20", "--val-size", "10", "--test-size", "10", "--epochs", "1", "--latent-dim", "2"]
    train = run(f"http://{host}", "vae", *tiny, **user)
    assert train.returncode == 0, train.stderr
    # The other way to give a password.
    uri = f"http://admin:{password}@{host}"
    for command in (
        ["evaluate", train.stdout.strip(), "--samples", "5", "--images", "10", "--budget", "1"],
        ["compare"],
    ):
        done = run(uri, *command)
        assert done.returncode == 0, done.stderr
    assert f'href="http://{host}/#/experiments/' in (store / "report" / "index.html").read_text()

    wrong = {**user, "MLFLOW_TRACKING_PASSWORD": "not that one"}
    for command in (["vae", *tiny], ["evaluate", train.stdout.strip(), "--budget", "1"], ["compare"]):
        refused = run(f"http://{host}", *command, **wrong)
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        assert re.fullmatch(r"elbolab: .*\n", refused.stderr)
    run(f"http://admin:{password}@127.0.0.1:{free_port()}", "compare")
    run(uri, "evaluate", "0" * 32)
    study = "from elbolab import Study\nSTUDY = Study(model='vae', search=['lr'], metrics=['val/elbo'])\n"
    (store / "studies").mkdir()
    (store / "studies" / "away.py").write_text(study)
    storage = f"postgresql+psycopg://elbolab:{password}@127.0.0.1:{free_port()}/optuna"
    lost = run(uri, "study", "away", "--storage", storage)
    assert lost.returncode == 2, lost.stderr
    assert "postgresql+psycopg://***@127.0.0.1" in lost.stderr

    assert all(password not in text for text in said)
    files = [file for file in store.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if password.encode() in file.read_bytes()] == []
