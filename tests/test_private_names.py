"""Names that other packages keep to themselves: each that is used here is still there, else its line is named."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.store.tracking.rest_store import RestStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils import name_utils
from optuna.storages import RDBStorage

import elbolab

PACKAGE = Path(elbolab.__file__).parent
# Documented in spite of their underscore.
PUBLIC = {"_exit", "_replace"}


def history_in_one_call() -> bool:
    store = mlflow.MlflowClient("http://127.0.0.1:1")._tracking_client.store
    return (
        isinstance(store, RestStore)
        and hasattr(store, "get_host_creds")
        and is_method(SqlAlchemyStore, "get_metric_history_bulk")
    )


def is_method(kind: type, name: str) -> bool:
    return callable(vars(kind).get(name))


STILL_THERE: dict[str, Callable[[], bool]] = {
    "_tracking_client": history_in_one_call,
    "_get_stale_trial_ids": lambda: is_method(RDBStorage, "_get_stale_trial_ids"),
    "_GENERATOR_NOUNS": lambda: "dog" in name_utils._GENERATOR_NOUNS,
    "_GENERATOR_PREDICATES": lambda: "calm" in map(str.lower, name_utils._GENERATOR_PREDICATES),
    "_version": lambda: isinstance(torch.ones(1)._version, int),
    "_load_from_state_dict": lambda: is_method(torch.nn.Module, "_load_from_state_dict"),
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def foreign_uses() -> Iterator[tuple[str, str]]:
    """Each private name that the package uses and does not define, with its line."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {
        node.target.id for _, node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for path, node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            inherited = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            if inherited or node.attr not in own:
                yield node.attr, f"{path}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and any(map(is_private, (node.module or "").split("."))):
            yield str(node.module), f"{path}:{node.lineno}"


USES = sorted(foreign_uses())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "line"), USES)
def test_a_private_name_of_another_package_is_still_there(name: str, line: str):
    assert name in STILL_THERE, f"{line} uses {name}; take a public name, or say here what shows that it is there"
    assert STILL_THERE[name](), f"{line} uses {name}, which is not there any more"


def test_nothing_is_looked_for_that_nobody_uses():
    unused = STILL_THERE.keys() - {name for name, _ in USES}
    assert not unused, f"no line uses {', '.join(sorted(unused))} any more; leave it out here"
