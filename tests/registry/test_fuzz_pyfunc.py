"""The served model and the readers of files under any input: an answer of the documented shape, or one line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from elbolab.data.splits import DataSpec, load_data
from elbolab.models import MODELS
from elbolab.registry.pyfunc import MOST_DECODES, MOST_IMAGES, PARAMS, RefusedError, Served, operations
from elbolab.support.errors import UserError
from elbolab.training.checkpoint import save_checkpoint

SIDE, CHANNELS, CLASSES, DIM = 8, 3, 4, 2
SPEC = DataSpec((CHANNELS, SIDE, SIDE), CLASSES, 3, 3, "")
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {},
    "vae": {"latent_dim": DIM, "net": "mlp", "hidden": 4, "likelihood": "bernoulli"},
    "latent_opt": {"latent_dim": DIM, "net": "mlp", "hidden": 4, "fit_steps": 2},
    "ppca": {"latent_dim": DIM},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    """Small models as MLflow serves them, by name."""
    found = {}
    for name, values in SMALL.items():
        path = tmp_path_factory.mktemp("served") / "best.safetensors"
        torch.manual_seed(0)
        save_checkpoint(path, MODELS[name](MODELS[name].Config.parse(values), SPEC), 1)
        found[name] = Served()
        found[name].load_context(SimpleNamespace(artifacts={"checkpoint": path}))
    return found


SHAPE = (SIDE, SIDE, CHANNELS)
COUNTS = st.integers(1, 4)
GOOD_IMAGES = COUNTS.flatmap(
    lambda count: hnp.arrays(
        st.sampled_from([np.uint8, np.int64, object]), (count, *SHAPE), elements=st.integers(0, 255)
    )
)
RIGHT_SHAPE = hnp.arrays(hnp.scalar_dtypes(), (2, *SHAPE))
OBJECTS = hnp.arrays(object, (1, *SHAPE), elements=st.none(), fill=st.integers() | st.floats() | st.text() | st.none())
ANY_ARRAYS = hnp.arrays(hnp.scalar_dtypes() | hnp.array_dtypes(), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(np.zeros((3, 3))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)
ANY_IMAGES = RIGHT_SHAPE | OBJECTS | ANY_ARRAYS | JUNK
BEYOND = st.sampled_from([-1, 0, 10**400, -(10**400), 2**63, 2**64, MOST_IMAGES, MOST_IMAGES + 1, MOST_DECODES + 1])
VALUES = st.integers(2, 20) | st.integers(2, 20) | BEYOND | JUNK
OPERATIONS = {
    "cnn": ["classify"],
    **{name: ["reconstruct", "encode", "sample", "log_px"] for name in ("vae", "latent_opt", "ppca")},
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any, Any]:
    """A model's name, images and parameters, each as often right as anything at all."""
    name = draw(st.sampled_from(sorted(SMALL)))
    op = draw(st.sampled_from(OPERATIONS[name]))
    numbers = {"n": VALUES, "samples": VALUES, "seed": VALUES}
    good = st.fixed_dictionaries({"op": st.just(op)}, optional=numbers)
    wrong = st.fixed_dictionaries({}, optional={"op": st.sampled_from(["classify", "encode"]) | JUNK, **numbers}) | JUNK
    images = draw(GOOD_IMAGES if draw(st.booleans()) else ANY_IMAGES)
    return name, images, draw(good if draw(st.booleans()) else wrong)


def documented(op: str, count: int, n: int) -> Any:
    """Shapes of an answer, as the docstring of Served has them."""
    match op:
        case "reconstruct":
            return (count, *SHAPE)
        case "sample":
            return (n, *SHAPE)
        case "encode":
            return {"mean": (count, DIM), "log_var": (count, DIM)}
        case "log_px":
            return {"log_px": (count,), "std_err": (count,), "ess": (count,), "unreliable": (count,)}
        case "classify":
            return (count, CLASSES)


@given(requests())
@example(("vae", np.zeros((1, *SHAPE), np.uint8), {"op": "sample", "n": MOST_IMAGES, "seed": 2**32 - 1}))
@example(("vae", np.zeros((1, *SHAPE), np.uint8), {"op": "log_px", "samples": 2}))
def test_any_request_is_answered_as_documented_or_refused_in_one_line(
    served: dict[str, Served], request_: tuple[str, Any, Any]
):
    name, images, params = request_
    refusal, answer = None, None
    try:
        answer = served[name].predict(None, images, params)
    except RefusedError as error:
        refusal = error.message
    event("refused" if refusal is not None else str((params or {}).get("op")))
    if refusal is not None:
        assert len(refusal.splitlines()) == 1
        assert len(refusal) < 500
        return
    asked = {"op": next(iter(operations(served[name].model))), **PARAMS, **(params or {})}
    shapes = documented(asked["op"], len(images), asked["n"])
    if isinstance(answer, dict):
        # An exact log p(x) has no importance weights.
        exact = {"ess"} if name == "ppca" else set()
        assert {key: value.shape for key, value in answer.items()} == {
            k: v for k, v in shapes.items() if k not in exact
        }
        assert all(np.isfinite(value).all() for value in answer.values())
    else:
        assert answer is not None
        assert answer.shape == shapes
        assert answer.min() >= 0
        assert answer.max() <= 1


def test_a_fit_is_counted_in_what_a_request_may_cost(served: dict[str, Served], monkeypatch: pytest.MonkeyPatch):
    """``latent_opt`` takes two steps an image here, six decodes."""
    monkeypatch.setattr("elbolab.registry.pyfunc.MOST_DECODES", 600)
    images = np.zeros((101, *SHAPE), np.uint8)
    for op in ("reconstruct", "encode", "log_px"):
        with pytest.raises(
            RefusedError, match=r"images must be at most 100 a request, .* takes 2 gradient steps.* 101"
        ):
            served["latent_opt"].predict(None, images, {"op": op, "samples": 2})
    assert len(np.asarray(served["latent_opt"].predict(None, images[:100], {}))) == 100
    served["latent_opt"].predict(None, images[:20], {"op": "log_px", "samples": 24, "method": "importance"})
    with pytest.raises(RefusedError, match="samples=25 must be from 2 to 24 for the 20 images"):
        served["latent_opt"].predict(None, images[:20], {"op": "log_px", "samples": 25, "method": "importance"})
    with pytest.raises(RefusedError, match="images must be at most 1 a request of method='auto', but theirs are 20"):
        served["latent_opt"].predict(None, images[:20], {"op": "log_px", "samples": 24})
    # Samples of the prior need no posterior, and an encoder's posterior no steps; one image is always answered.
    served["latent_opt"].predict(None, images, {"op": "sample"})
    served["vae"].predict(None, images, {})
    monkeypatch.setattr("elbolab.registry.pyfunc.MOST_DECODES", 5)
    assert len(np.asarray(served["latent_opt"].predict(None, images[:1], {}))) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good npz file, compressed."""
    path = tmp_path_factory.mktemp("npz") / "own.npz"
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    np.savez_compressed(path, images=images, labels=np.arange(20) % 3)
    return path


@given(st.data())
def test_a_file_of_any_bytes_is_read_or_refused_in_one_line(whole: Path, data: st.DataObject):
    content = bytearray(whole.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = whole.with_name("broken.npz")
    path.write_bytes(data.draw(st.sampled_from([content, bytes(content)[::-1]]) | st.binary()))
    refusal = None
    try:
        assert len(load_data(f"npz:{path}", Path()).train) == 16
    except UserError as error:
        refusal = str(error)
    assert refusal is None or (str(path) in refusal and len(refusal.splitlines()) == 1)
