"""A model's training steps compiled as elbolab does, in turn with the same steps without."""

import os
import statistics
import time

# Before torch reads it: what an earlier round compiled would be found again.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(os.getcwd(), "compiled")

import torch
from common import arguments, report
from elbolab_training import prepared

from elbolab.training.backend import Objective
from elbolab.training.compiled_steps import Compiled

STEPS, TURNS = 40, 7
# As the study burda2016 has them.
DENSE = {"net": "mlp", "hidden": 200, "activation": "tanh", "latent_dim": 50, "likelihood": "bernoulli"}


def main() -> None:
    given = arguments()
    fields = {**DENSE, "precision": "float32"} if given.nets == "dense" else {}
    model, data = prepared(given.model, given, **fields)
    precision = str(model.precision).removeprefix("torch.")
    model.prepare(data)
    model.train()
    optimizers, objective = model.optimizers(), Objective(model)
    batches = [model.observe(batch) for batch in data.train.batches(given.batch_size, torch.Generator())][:STEPS]
    ways = {"eager": objective, "compiled": Compiled(objective, given.batch_size)}

    def seconds(way: str, count: int) -> float:
        began = time.perf_counter()
        for batch in batches[:count]:
            ways[way](batch, 1.0)[1].backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return time.perf_counter() - began

    # What the first optimiser imports is paid either way.
    seconds("eager", 2)
    compiling = seconds("compiled", 1)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, times in found.items():
            times.append(seconds(way, STEPS) / len(batches))
    eager, compiled = (statistics.median(times) for times in found.values())
    report(compile_s=compiling, eager_ms=1000 * eager, compiled_ms=1000 * compiled, precision=precision)


if __name__ == "__main__":
    main()
