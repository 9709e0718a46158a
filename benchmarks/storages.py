"""Optuna's storages under parallel workers: `python benchmarks/storages.py --workers 4`, milliseconds a trial."""

import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable

import click
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from elbolab.support import sqlite

PLAIN, WAL = "sqlite:///plain.db", "sqlite:///wal.db"


def journal() -> BaseStorage:
    return JournalStorage(JournalFileBackend("optuna.journal"))


def plain_sqlite(url: str = PLAIN) -> BaseStorage:
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}}, heartbeat_interval=10)


def wal_sqlite() -> BaseStorage:
    with sqlite.first_use(WAL):
        return plain_sqlite(WAL)


def postgresql() -> BaseStorage:
    return RDBStorage(os.environ["ELBOLAB_POSTGRESQL"], heartbeat_interval=10)


STORAGES: dict[str, Callable[[], BaseStorage]] = {
    "journal file, no heartbeats": journal,
    "sqlite": plain_sqlite,
    "sqlite in WAL mode": wal_sqlite,
    "PostgreSQL": postgresql,
}


def objective(trial: optuna.Trial) -> float:
    value = trial.suggest_float("lr", 1e-4, 1e-2, log=True) + trial.suggest_int("latent_dim", 2, 256, log=True)
    for epoch in range(5):
        trial.report(value, epoch)
        trial.should_prune()
    return value


def work(make: Callable[[], BaseStorage], study: str, trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    optuna.load_study(study_name=study, storage=make()).optimize(objective, n_trials=trials)


@click.command()
@click.option("--workers", default=4)
@click.option("--trials", default=25, help="Trials of each worker.")
def main(workers: int, trials: int) -> None:
    """Trials of five reported epochs and no training; PostgreSQL too where $ELBOLAB_POSTGRESQL is a URL."""
    os.chdir(tempfile.mkdtemp())
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    context = multiprocessing.get_context("spawn")
    for name, make in STORAGES.items():
        if make is postgresql and "ELBOLAB_POSTGRESQL" not in os.environ:
            continue
        study = optuna.create_study(study_name=f"{name} {time.time()}", storage=make())
        crew = [context.Process(target=work, args=(make, study.study_name, trials)) for _ in range(workers)]
        for process in crew:
            process.start()
        for process in crew:
            process.join()
        found = study.trials
        failed = sum(process.exitcode != 0 for process in crew)
        ends = [trial.datetime_complete for trial in found if trial.datetime_complete]
        starts = [trial.datetime_start for trial in found if trial.datetime_start]
        busy = (max(ends) - min(starts)).total_seconds() * workers
        click.echo(f"{name}: {1000 * busy / len(ends):.0f} ms a trial, {len(found)} trials, {failed} workers died")


if __name__ == "__main__":
    main()
