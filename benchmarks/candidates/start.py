"""From the command `elbolab vae` to its first loss, with a prepared store and warm files, and from `elbolab --help`."""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from common import arguments, report

from elbolab.tracking.mlflow_reader import prepare_store


def main() -> None:
    arguments()
    prepare_store()
    watched = Path(__file__).with_name("first_loss.py")
    began = time.time()
    line = subprocess.run([sys.executable, watched, "vae"], capture_output=True, text=True, check=True).stdout
    marks = json.loads(line.splitlines()[-1])
    times = [began, *marks.values()]
    parts = dict(zip(marks, (later - earlier for earlier, later in pairwise(times)), strict=True))
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "elbolab", "--help"], capture_output=True, check=True)
    help_seconds = time.perf_counter() - began
    report(seconds=times[-1] - times[0], parts=parts, help_seconds=help_seconds)


if __name__ == "__main__":
    main()
