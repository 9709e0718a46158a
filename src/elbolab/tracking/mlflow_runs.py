"""Runs on the tracking server: the one place that makes, finds, fills, ends and deletes them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag

from elbolab.tracking.keys import FAILURE, RUNNING
from elbolab.tracking.mlflow_reader import NOTHING, PAGE, all_pages, is_tag, prepare_store

Value = tuple[str, float, int, int]
"""Key, value, time in milliseconds since 1970, and step of a metric."""


class MlflowRuns:
    """The runs of the present server, which is first asked when they are needed.

    Every method raises MlflowException where the server does not answer or refuses.
    """

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """MLflow's client, for all that is not a run."""
        # To make one makes the tables of a store that has none.
        prepare_store()
        return mlflow.MlflowClient()

    def create(self, experiment: str, start: int, name: str, tags: Mapping[str, str]) -> str:
        """Make a run that is RUNNING since ``start``, in milliseconds since 1970; returns its id."""
        return self.client.create_run(experiment, start, dict(tags), name).info.run_id

    def find(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        """The runs of an experiment that have these tags, the oldest first."""
        query = " and ".join(is_tag(key, value) for key, value in tags.items())
        search = partial(self.client.search_runs, [experiment], query, max_results=PAGE)
        found = all_pages(lambda token: search(page_token=token))
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def keep_one(self, runs: Sequence[Run]) -> Run | None:
        """The first of runs that should be one, None of none; the others are deleted."""
        for twin in runs[1:]:
            self.client.delete_run(twin.info.run_id)
        return runs[0] if runs else None

    def log(
        self,
        run_id: str,
        values: Iterable[Value] = (),
        params: Mapping[str, str] = NOTHING,
        tags: Mapping[str, str] = NOTHING,
    ) -> None:
        """Log all of it in one call, or none where there is nothing to log."""
        metrics = [Metric(*value) for value in values]
        if metrics or params or tags:
            own_params = [Param(key, value) for key, value in params.items()]
            self.client.log_batch(run_id, metrics, own_params, [RunTag(key, value) for key, value in tags.items()])

    def reopen(self, run: Run) -> None:
        """Set a run that is resumed to RUNNING, and remove the reason why it had failed."""
        self.client.update_run(run.info.run_id, RUNNING)
        if FAILURE in run.data.tags:
            self.client.delete_tag(run.info.run_id, FAILURE)

    def end(self, run_id: str, status: str, time: int) -> None:
        """End a run with this status at ``time``, in milliseconds since 1970."""
        self.client.set_terminated(run_id, status, time)
