"""What the tests share: a few real digits, and a tracking store of their own."""

import math
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from elbolab import cli
from elbolab.data.batches import Batch, Data, DataSpec
from elbolab.data.splits import load_data
from elbolab.models import MODELS
from elbolab.models.latent import LatentConfig
from elbolab.models.likelihoods import LIKELIHOODS, Likelihood
from elbolab.models.ppca import PPCA, PPCAConfig
from elbolab.tracking.mlflow_reader import prepare_store

REPOSITORY = Path(__file__).parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]

# Two threads that wait for each other on two busy cores cost more than they give on batches this small.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"

# The same cases at every `make test`, others and more of them at every `make fuzz`.
# On a busy machine anything may be slow.
ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("test", max_examples=300, derandomize=True, database=None, **ANY_SPEED)
settings.register_profile("fuzz", max_examples=10_000, database=None, print_blob=True, **ANY_SPEED)
settings.load_profile("test")


@pytest.fixture(scope="session")
def digits() -> Data:
    """64 training, 20 validation and 20 test digits."""
    return load_data("mnist5k", Path(), train_size=64, val_size=20, test_size=20)


@pytest.fixture(scope="session")
def sixteen() -> Data:
    return load_data("mnist5k", Path(), train_size=16, val_size=10, test_size=10)


def make_likelihood(name: str, **fields: Any) -> Likelihood:
    """The likelihood of this name, as a model of these fields has it."""
    return LIKELIHOODS[name](LatentConfig.parse({"likelihood": name, **fields}))


def linear_gaussian(
    latent_dim: int, sigma: float = 0.4, shape: tuple[int, int, int] = (1, 3, 4), seed: int = 0
) -> tuple[PPCA, Tensor]:
    """A decoder x = W z + mean + sigma noise with orthogonal W, exact in everything, and eight images drawn from it."""
    generator = torch.Generator().manual_seed(1000 * seed + latent_dim)
    model = PPCA(PPCAConfig(latent_dim=latent_dim, sigma=sigma), DataSpec(shape, 10, 8, 8, ""))
    pixels = math.prod(shape)
    basis = torch.linalg.qr(torch.randn(pixels, latent_dim, generator=generator)).Q
    model.loadings = basis * torch.linspace(0.2, 1.5, latent_dim)
    model.mean = torch.rand(pixels, generator=generator)
    z = torch.randn(8, latent_dim, generator=generator)
    return model, model.decode(z) + sigma * torch.randn(8, *shape, generator=generator)


def trained(name: str, data: Data, **fields: Any) -> Any:
    torch.manual_seed(0)
    model = MODELS[name](MODELS[name].Config.parse({"dataset": "mnist5k", **fields}), data.spec)
    model.prepare(data)
    return model.eval()


def batch_of(x: Tensor) -> Batch:
    """Images as a batch of test images without labels."""
    nothing = torch.zeros(len(x), dtype=torch.int64)
    return Batch(x, nothing, nothing, "test", "")


@pytest.fixture
def unused_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder as working folder, where a sqlite store that is still to be made is the tracking server."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield tmp_path
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store in which nothing is yet; to make its tables takes seconds."""
    folder = tmp_path_factory.mktemp("tables")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    prepare_store()
    mlflow.set_tracking_uri(before)
    return folder / "mlflow.db"


@pytest.fixture
def store(unused_store: Path, tables: Path) -> Path:
    """A folder as working folder, with a sqlite store in it as tracking server."""
    copy_store(tables, unused_store / "mlflow.db")
    return unused_store


def copy_store(tables: Path, path: Path) -> None:
    """A store in which nothing is yet, with its files beside it."""
    with closing(sqlite3.connect(tables)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
        copy.execute("UPDATE experiments SET artifact_location = ?", (f"{path.parent}/mlruns/0",))
        copy.commit()


@pytest.fixture
def command(store: Path) -> Command:
    """Run `elbolab ARGUMENTS` as a process of its own in the store's folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "elbolab", *arguments],
            cwd=store,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture
def command_here(store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run `elbolab ARGUMENTS` in this process, which has imported all that another would import for seconds."""
    usual = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        for name, value in {**cli.ENVIRONMENT, **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["elbolab", *arguments])
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(arguments, code or 0, *capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, usual)


class Postgres:
    """A PostgreSQL server of its own with two databases; ``url`` is without their names."""

    def __init__(self, tools: Path, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"postgresql+psycopg://elbolab@127.0.0.1:{self.port}"
        self._tools = tools
        # PostgreSQL refuses to run as root.
        self._user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self._user:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", f"{folder}/data", "-U", "elbolab", "--auth=trust", "--no-sync")
        self.start()
        for database in ("optuna", "mlflow"):
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "elbolab", database)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-o", options, "-l", f"{self.folder}/log", "-w", "start")

    def stop(self) -> None:
        """Let go of every connection at once."""
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "stop")

    def _run(self, tool: str, *arguments: str) -> None:
        command = [*self._user, str(self._tools / tool), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, or the reason why the test is skipped."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'elbolab[postgresql]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not (found or shutil.which("initdb")):
        pytest.skip("no PostgreSQL server here: Debian's package is postgresql")
    folder = Path(tempfile.mkdtemp())
    database = Postgres(found[-1] if found else Path(str(shutil.which("initdb"))).parent, folder)
    try:
        yield database
    finally:
        database.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, as Playwright's Browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (executable := shutil.which("chromium")) is None:
        pytest.skip("no chromium on PATH")
    quiet = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=quiet)
        yield opened
        opened.close()


def complaints(page: Any) -> list[str]:
    """A list that grows by what goes wrong on a page from now on: console errors, exceptions, requests that fail."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    return problems


def wait_for(happened: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if happened():
            return
        time.sleep(0.1)
    raise TimeoutError


def free_port() -> int:
    """A port of this machine that nobody listens to, below those that connections get by themselves."""
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def wait_for_server(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return once the MLflow server at ``address``, which ``process`` is, answers."""
    until = time.monotonic() + 180
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ChildProcessError(f"the server at {address} ended with {process.returncode}")
        try:
            urllib.request.urlopen(f"{address}/health", timeout=10)
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


@contextmanager
def mlflow_server(store: Path, runs: str, port: int) -> Iterator[str]:
    """An MLflow server that keeps its runs in the database ``runs`` and hands artifacts through; gives its address."""
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", runs, "--artifacts-destination", str(store / "kept")),
        ],
        cwd=store,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    before = mlflow.get_tracking_uri()
    try:
        wait_for_server(address, process)
        mlflow.set_tracking_uri(address)
        yield address
    finally:
        mlflow.set_tracking_uri(before)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def mlflow_run(store: Path, *arguments: str, project: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run `mlflow run PROJECT -e ENTRY_POINT -P KEY=VALUE ...`, in this very environment; it works in the project."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}/mlflow.db"
    options = [item for key_value in arguments[1:] for item in ("-P", key_value)]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mlflow",
            "run",
            str(project),
            "-e",
            arguments[0],
            "--env-manager",
            "local",
            *options,
        ],
        cwd=store,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
