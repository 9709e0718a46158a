"""The benchmark suite, `make bench`: every part beside its peers, in turn; writes results.json and results.md here."""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from parts import CORES, MOST_ROUNDS, OWN_DATA, PARTS, Candidate
from peers import PEERS, PYTHON, make_environment
from render import render

from elbolab.config.schema import default_data_dir

# No torch here: the peak memory of a process begins at that of the one that started it.

HERE = Path(__file__).parent
RAW, PAGE = HERE / "results.json", HERE / "results.md"


class Runner:
    """Runs candidates one after another, each in a folder of its own, on the same images."""

    def __init__(self, data: Path, threads: int, caps: list[str]) -> None:
        own = {"PYTHONPATH": str(HERE.parent / "src"), "ELBOLAB_DATA": str(default_data_dir().absolute())}
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | own
        self._environment["CUDA_VISIBLE_DEVICES"] = ""
        self._shared = ["--data", str(data), "--threads", str(threads), *caps]
        self.data = self.run(Candidate("the data", "save_data"), 0)
        self._shared += ["--dataset", self.data["dataset"]]

    def run(self, candidate: Candidate, seed: int) -> dict[str, Any]:
        """What a candidate prints; raises ClickException where it fails."""
        python = PYTHON if candidate.peer else sys.executable
        script = HERE / "candidates" / f"{candidate.script}.py"
        arguments = [*self._shared, "--seed", str(seed), *candidate.arguments.split()]
        with TemporaryDirectory() as folder:
            done = subprocess.run(
                [python, script, *arguments], cwd=folder, env=self._environment, capture_output=True, text=True
            )
        if done.returncode:
            raise click.ClickException(f"{candidate.name} ({candidate.script}) failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def rounds(self, part: str, count: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """By case and candidate what each round gave; empty where MNIST's own files are wanted and not there."""
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for case, candidates in PARTS[part].items():
            found[case] = {candidate.name: [] for candidate in candidates}
            for number in range(count):
                for candidate in candidates:
                    if candidate.script == "dataloader_training" and self.data["dataset"] != "mnist":
                        continue
                    began = time.perf_counter()
                    found[case][candidate.name].append(self.run(candidate, number))
                    seconds = time.perf_counter() - began
                    line = f"{part}: {case}: {candidate.name}, round {number + 1} of {count}: {seconds:.0f} s"
                    click.echo(line, err=True)
        return found


def machine() -> str:
    """The machine, without its name."""
    processor = platform.processor() or platform.machine()
    if (file := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in file.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    return f"{processor}, {CORES} cores, {memory:.0f} GiB, {system}"


def versions() -> str:
    found = {"Python": platform.python_version(), "torch": version("torch"), **PEERS}
    return ", ".join(f"{name} {number}" for name, number in found.items())


def commit() -> str:
    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", HERE.parent, *arguments], capture_output=True, text=True)

    changed = git("diff", "--quiet", "HEAD", "--", "src", "benchmarks/*.py").returncode
    return f"commit {git('rev-parse', '--short', 'HEAD').stdout.strip()}{' with changes' if changed else ''}"


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Part to run; others keep their results.")
@click.option("--rounds", default=5, help="Turns of each candidate; of some parts fewer suffice.")
@click.option("--threads", default=CORES, help="Threads of every candidate [default: one a core].")
@click.option("--images", help="Most images of each candidate, to try the suite out.")
@click.option("--epochs", help="Most epochs of each candidate, to try the suite out.")
def main(only: tuple[str, ...], rounds: int, threads: int, images: str | None, epochs: str | None) -> None:
    """Measure, and write benchmarks/results.md; about forty minutes on two cores."""
    make_environment()
    results = json.loads(RAW.read_text()) if RAW.is_file() else {}
    tried = {"--most-images": images, "--most-epochs": epochs}
    caps = [word for flag, value in tried.items() if value for word in (flag, value)]
    with TemporaryDirectory() as folder:
        runner = Runner(Path(folder, "data.npz"), threads, caps)
        for part in only or PARTS:
            count = min(rounds, MOST_ROUNDS.get(part, rounds))
            cases = runner.rounds(part, count)
            # Only once measured, since the commit may have changed meanwhile.
            where = f"{machine()}; {versions()}; {commit()}, {date.today()}"
            images = OWN_DATA.get(part, runner.data["dataset"])
            how = f"{count} round{'s' * (count > 1)}, {threads} threads, images of {images}"
            results[part] = {"where": where, "how": " ".join([how, *caps]), "cases": cases}
            RAW.write_text(json.dumps(results, indent=1))
            PAGE.write_text(render(results))
    click.echo(PAGE.read_text())


if __name__ == "__main__":
    main()
