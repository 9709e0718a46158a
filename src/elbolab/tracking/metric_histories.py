"""The values of one metric of many runs in one call, which MLflow's client does not have and its server does."""

from collections.abc import Sequence

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import http_request_safe

Value = tuple[str, int, float]
# What the server takes and gives in one call.
RUNS_A_CALL, VALUES_A_CALL = 100, 25_000
CALL = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


def values(run_ids: Sequence[str], key: str) -> list[Value]:
    """Run, step and value of everything that was logged under ``key``, run by run in the order of logging."""
    if len(run_ids) > RUNS_A_CALL:
        return _halves(run_ids, key)
    found = _in_one_call(run_ids, key) if len(run_ids) > 1 else None
    if found is None:
        client = mlflow.MlflowClient()
        return [(run, item.step, item.value) for run in run_ids for item in client.get_metric_history(run, key)]
    return found if len(found) < VALUES_A_CALL else _halves(run_ids, key)


def _halves(run_ids: Sequence[str], key: str) -> list[Value]:
    middle = len(run_ids) // 2
    return values(run_ids[:middle], key) + values(run_ids[middle:], key)


def _in_one_call(run_ids: Sequence[str], key: str) -> list[Value] | None:
    """The first ``VALUES_A_CALL`` values; None from a server that does not know the call."""
    store = mlflow.MlflowClient()._tracking_client.store
    if (read := getattr(store, "get_metric_history_bulk", None)) is not None:
        return [(item.run_id, item.step, item.value) for item in read(run_ids, key, VALUES_A_CALL)]
    asked = {"run_id": run_ids, "metric_key": key, "max_results": VALUES_A_CALL}
    try:
        answer = http_request_safe(store.get_host_creds(), CALL, "GET", params=asked)
    except MlflowException as error:
        if error.get_http_status_code() == 404:
            return None
        raise
    return [(row["run_id"], row["step"], row["value"]) for row in answer.json()["metrics"]]
