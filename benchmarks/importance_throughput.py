"""Decodes a second, of the importance evaluator and of its decoder: `python benchmarks/importance_throughput.py`."""

import time
from collections.abc import Callable

import click
import torch

from elbolab.data import DataSpec
from elbolab.evaluators.importance import DECODES_AT_ONCE, importance_estimate
from elbolab.models import MODELS
from elbolab.models.latent import DiagonalGaussian, LatentModel

BATCHES = (50, 100, 200, 500, 1000, 2000, 5000, 20000)


@click.command()
@click.option("--samples", default=1000, help="Importance samples an image.")
@click.option("--images", default=10)
@click.option("--latent-dim", default=200)
@click.option("--net", type=click.Choice(["conv", "mlp"]), default="conv")
@click.option("--rounds", default=5)
def main(samples: int, images: int, latent_dim: int, net: str, rounds: int) -> None:
    """Print both in latent vectors a second, the best of ROUNDS each, taken in turn."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = MODELS["vae"].Config.parse({"latent_dim": latent_dim, "net": net})
    model = MODELS["vae"](config, DataSpec((1, 28, 28), 10, 1, 1, "")).to(device).eval()
    assert isinstance(model, LatentModel)
    x = torch.rand(images, 1, 28, 28, device=device)
    q = DiagonalGaussian(*torch.randn(2, images, latent_dim, device=device).mul(0.1).unbind())
    z = torch.randn(max(BATCHES), 1, latent_dim, device=device)
    decodes = samples * images

    def bare(batch: int) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> None:
            for _ in range(max(1, decodes // batch)):
                model.decode(z[:batch])

        return run

    jobs: dict[str, tuple[Callable[[], object], int]] = {
        f"bare decoder, batches of {batch}": (bare(batch), max(1, decodes // batch) * batch) for batch in BATCHES
    }
    jobs[f"importance evaluator, {DECODES_AT_ONCE[device]} at once"] = (
        lambda: importance_estimate(model, x, q, samples),
        decodes,
    )
    best = dict.fromkeys(jobs, 0.0)
    for _ in range(rounds):
        for name, (job, count) in jobs.items():
            best[name] = max(best[name], count / _seconds(job, device))
    for name, speed in best.items():
        click.echo(f"{speed:12,.0f} a second  {name}")
    *decoder, evaluator = best.values()
    click.echo(f"the evaluator sustains {evaluator / max(decoder):.0%} of the bare decoder at its best")


def _seconds(job: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    job()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
