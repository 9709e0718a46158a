"""log p(x) by elbolab's importance sampling, from an untrained vae: decodes a second."""

import time

import torch
from common import arguments, load_images, report
from elbolab_training import prepared

from elbolab.evaluators.importance import importance_estimate
from elbolab.models import LatentModel


def main() -> None:
    given = arguments()
    model, data = prepared("vae", given, train_size=1000)
    assert isinstance(model, LatentModel)
    x = load_images(given)[0]
    q = model.eval().infer(data.train.batch(torch.arange(len(x))).with_x(x))
    importance_estimate(model, x[:1], q[:1], 100)
    began = time.perf_counter()
    estimate = importance_estimate(model, x, q, given.samples)
    seconds = time.perf_counter() - began
    report(decodes_per_s=len(x) * given.samples / seconds, log_px=estimate.log_px.mean().item())


if __name__ == "__main__":
    main()
