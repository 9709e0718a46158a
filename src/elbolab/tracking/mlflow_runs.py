"""Runs on the tracking server: found, filled, reopened, and one kept of several that are the same."""

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
        """MLflow's client."""
        # To make one makes the tables of a store that has none.
        prepare_store()
        return mlflow.MlflowClient()

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
        batch = [Metric(*value) for value in values], [Param(*one) for one in params.items()]
        marks = [RunTag(*one) for one in tags.items()]
        if any((*batch, marks)):
            self.client.log_batch(run_id, *batch, marks)

    def reopen(self, run: Run) -> None:
        """Set a run that is resumed to RUNNING, and remove the reason why it had failed."""
        self.client.update_run(run.info.run_id, RUNNING)
        if FAILURE in run.data.tags:
            self.client.delete_tag(run.info.run_id, FAILURE)
