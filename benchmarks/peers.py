"""The environment of the peers that elbolab is measured against: made once, and anew when a pin changes."""

import subprocess
import sys
from pathlib import Path

import click

FOLDER = Path(__file__).parent
CONSTRAINTS = FOLDER.parent / "constraints.txt"
PYTHON = FOLDER / ".venv" / "bin" / "python"
PEERS = {"pythae": "0.1.2", "lightning": "2.6.6"}


def make_environment() -> None:
    """Install the peers beside the versions of constraints.txt, torch's above all, unless they are there."""
    packages = ["torch", "torchvision", *(f"{name}=={version}" for name, version in PEERS.items())]
    wanted = "\n".join([*packages, CONSTRAINTS.read_text()])
    installed = FOLDER / ".venv" / "installed.txt"
    if installed.is_file() and installed.read_text() == wanted:
        return
    click.echo("installing the peers, which takes minutes")
    subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER / ".venv"], check=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS]
    subprocess.run([*pip, *packages], check=True)
    installed.write_text(wanted)
