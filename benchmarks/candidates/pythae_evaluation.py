"""log p(x) by pythae's ``get_nll`` from an untrained vae: decodes a second, counted where they are made."""

import time
from typing import Any

import torch
from common import SIGMA, arguments, load_images, report
from pythae_nets import LOG_SCALE, make_model

ASKED = (50, 250)


class Counter:
    """How many latent vectors a decoder was given."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, _: Any, inputs: Any, output: Any) -> None:
        self.count += len(inputs[0])


@torch.no_grad()
def main() -> None:
    given = arguments()
    counter = Counter()
    # pythae's own type says nothing of get_nll.
    model: Any = make_model(given).eval()
    model.decoder.register_forward_hook(counter.add)
    x = load_images(given) / SIGMA
    drawn = {}
    for asked in ASKED:
        counter.count = 0
        model.get_nll(x[:1], asked)
        drawn[asked] = counter.count
    counter.count, began = 0, time.perf_counter()
    log_px = model.get_nll(x, given.samples)
    seconds = time.perf_counter() - began
    drawn[given.samples] = counter.count / len(x)
    report(decodes_per_s=counter.count / seconds, log_px=float(log_px) - LOG_SCALE, drawn=drawn)


if __name__ == "__main__":
    main()
