"""log p(x) by elbolab's importance sampling, from an untrained vae: decodes a second."""

import time

import torch
from common import arguments, report
from elbolab_training import prepared

from elbolab.evaluation.importance_sampling import importance_estimate
from elbolab.models.latent import LatentModel


def main() -> None:
    given = arguments()
    model, data = prepared("vae", given)
    assert isinstance(model, LatentModel)
    batch = data.train.batch(torch.arange(given.images))
    q = model.eval().infer(batch)
    importance_estimate(model, batch.x[:1], q[:1], 100)
    began = time.perf_counter()
    estimate = importance_estimate(model, batch.x, q, given.samples)
    seconds = time.perf_counter() - began
    report(decodes_per_s=given.images * given.samples / seconds, log_px=estimate.log_px.mean().item())


if __name__ == "__main__":
    main()
