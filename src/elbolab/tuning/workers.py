"""Who works on a study's trials at the same time: processes of this machine, or Ray's."""

import os
import signal
import sys
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any

import mlflow
import optuna
import torch

from elbolab.config.schema import StudyConfig
from elbolab.support import sqlite
from elbolab.support.errors import UserError
from elbolab.support.malloc import tune_memory
from elbolab.tuning.optuna_storage import Job, ended, open_study
from elbolab.tuning.trial import refuse_hopeless, work

DEATHS_WITHOUT_PROGRESS = 5


def work_locally(job: Job, parent: str, workers: int) -> None:
    """Carry the study out in this process, or in ``workers`` processes that share the cores; one that dies is replaced.

    Raises UserError where they die one after another without an ended trial.
    """
    if workers == 1:
        work(job, parent)
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = get_context("spawn")

    def start() -> BaseProcess:
        process = context.Process(target=_begin, args=(job, parent, threads))
        process.start()
        return process

    study, _ = open_study(job)
    processes: list[BaseProcess] = []
    deaths, before = 0, _count(study, job)
    try:
        for _ in range(workers):
            processes.append(start())
        while processes:
            connection.wait([process.sentinel for process in processes])
            for process in [process for process in processes if not process.is_alive()]:
                processes.remove(process)
                if process.exitcode == 2:
                    raise UserError("a worker stopped; what it said is above")
                if process.exitcode == 0:
                    continue
                deaths, before = (deaths + 1 if (now := _count(study, job)) == before else 1), now
                if deaths > DEATHS_WITHOUT_PROGRESS:
                    raise UserError(
                        f"{deaths} workers died without a trial; the last with exit code {process.exitcode}"
                    )
                print(f"a worker died with exit code {process.exitcode}; another takes its place", file=sys.stderr)
                processes.append(start())
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _count(study: optuna.Study, job: Job) -> int:
    return len(ended(study.get_trials(deepcopy=False), job.study))


def _begin(job: Job, parent: str, threads: int) -> None:
    def stop(number: int, frame: Any) -> None:
        # A second signal must not interrupt the line that is printed of the trial.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + number)

    # A terminal sends Ctrl-C to every process; the first of them passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    torch.set_num_threads(threads)
    tune_memory()
    try:
        work(job, parent)
    except UserError as error:
        print(f"elbolab: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def work_on_ray(job: Job, parent: str, config: StudyConfig) -> None:
    """Carry the study out on a Ray cluster, one trial a task; the retry of a lost one is Optuna's alone.

    The storage and the tracking server must be reachable from every node. Raises UserError where Ray is not installed
    or not reachable.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise UserError("executor='ray' needs Ray; pip install 'elbolab[ray]'") from error
    was_there = ray.is_initialized()
    try:
        ray.init(address=config.address, ignore_reinit_error=True, log_to_driver=True, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"address={config.address!r} is no Ray cluster: {error}; start one by `ray start`") from error
    environment = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "ELBOLAB_"))}
    environment["MLFLOW_TRACKING_URI"] = sqlite.absolute(mlflow.get_tracking_uri())
    # Ray writes this environment into its logs, so that no password may be in it.
    threads = {"OMP_NUM_THREADS": str(max(1, int(config.cpus_per_trial)))}
    task = ray.remote(
        num_cpus=config.cpus_per_trial,
        num_gpus=config.gpus_per_trial,
        max_retries=0,
        runtime_env={"env_vars": threads},
    )(_one_trial)
    study, _ = open_study(job)
    pending: list[Any] = []
    losses, before, first = 0, _count(study, job), len(study.get_trials(deepcopy=False))
    try:
        while (missing := job.target - _count(study, job)) > 0:
            # A task knows of its own trial only.
            refuse_hopeless(study.get_trials(deepcopy=False)[first:])
            pending += [task.remote(job, parent, environment) for _ in range(missing - len(pending))]
            ready, pending = ray.wait(pending, timeout=5)
            for done in ready:
                try:
                    ray.get(done)
                except RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise error.cause from None
                    raise
                except RayError as error:
                    # A node or a worker that died. Its trial goes stale, and whoever comes next finds the retry.
                    losses, before = (losses + 1 if (now := _count(study, job)) == before else 1), now
                    if losses > DEATHS_WITHOUT_PROGRESS:
                        raise UserError(f"{losses} tasks were lost without a trial, the last for: {error}") from error
                    print(f"a task was lost ({type(error).__name__})", file=sys.stderr, flush=True)
    finally:
        for left in pending:
            ray.cancel(left)
        # An interrupted trial is queued again by its worker.
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=30)
        # It prints what its nodes say, on standard output, whose last line is the run's id.
        if not was_there:
            ray.shutdown()


def _one_trial(job: Job, parent: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    tune_memory()
    work(job, parent, limit=1)
