"""The decoder of the default vae alone, at the batch size that suits it best: decodes a second."""

import time

import torch
from common import arguments, make_nets, report

from elbolab.support.malloc import tune_memory

BATCHES = (100, 200, 500, 1000, 2000)


@torch.no_grad()
def main() -> None:
    given = arguments()
    given.nets = "elbolab"
    tune_memory()
    decoder, _ = make_nets(given)
    decodes = given.images * given.samples

    def speed(batch: int) -> float:
        z, count = torch.randn(batch, given.latent_dim), max(1, decodes // batch)
        decoder(z).sigmoid_()
        began = time.perf_counter()
        for _ in range(count):
            decoder(z).sigmoid_()
        return count * batch / (time.perf_counter() - began)

    speeds = {batch: speed(batch) for batch in BATCHES}
    best = max(speeds, key=lambda batch: speeds[batch])
    report(decodes_per_s=speeds[best], batch=best)


if __name__ == "__main__":
    main()
