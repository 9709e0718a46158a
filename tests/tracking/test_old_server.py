"""The present client against a tracking server of an older MLflow 3, in an environment of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command, free_port, wait_for_server

pytestmark = pytest.mark.install
# The oldest that was tried. Its own pins let in a SQLAlchemy that came later and that it cannot be imported with.
OLD = ["mlflow==3.1.4", "sqlalchemy<2.1"]


@pytest.fixture
def old_server(store: Path) -> Iterator[str]:
    """Address of a server that pip makes of ``OLD``."""
    subprocess.run([sys.executable, "-m", "venv", store / "old"], check=True)
    subprocess.run([store / "old" / "bin" / "pip", "install", "--quiet", *OLD], check=True)
    address = f"http://127.0.0.1:{(port := free_port())}"
    process = subprocess.Popen(
        [
            *(store / "old" / "bin" / "python", "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", "sqlite:///old.db", "--artifacts-destination", "kept"),
        ],
        cwd=store,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_server(address, process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def test_what_works_with_the_present_server_works_with_an_older_one(store: Path, old_server: str, command: Command):
    def done(*arguments: str) -> str:
        result = command(*arguments, MLFLOW_TRACKING_URI=old_server)
        assert result.returncode == 0, result.stderr
        return result.stdout

    size = ["--train-size", "40", "--val-size", "10", "--test-size", "10", "--epochs", "2", "--latent-dim", "2"]
    runs = [done(model, *size).strip() for model in ("vae", "ppca")]
    for run in runs:
        assert "test/log_px" in done("evaluate", run, "--samples", "5", "--images", "10", "--budget", "1")
    page = store / done("compare").strip()
    assert all(f"/runs/{run}" in page.read_text() for run in runs)
    # Two runs' curves come by the one call that MLflow's client does not have.
    assert (page.parent / "curves.csv").read_text().count(",val/elbo,2,") >= 1
    assert done("promote", runs[0], "--name", "old").strip() == "models:/old/1"
    assert "models:/old/1 @champion" in done("models")
