"""What each part of the suite runs: its cases, and the candidates of each, which take turns."""

import os
from dataclasses import dataclass

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Candidate:
    """A script of candidates/ and its own arguments, for the peers' interpreter or for this one."""

    name: str
    script: str
    arguments: str = ""
    peer: bool = False


Cases = dict[str, list[Candidate]]


def trainings(arguments: str, peers: str) -> list[Candidate]:
    """elbolab's training, as it comes and in float32, and those of ``peers``."""
    known = [
        Candidate("elbolab", "elbolab_training", arguments),
        Candidate("elbolab in float32", "elbolab_training", f"{arguments} --precision float32"),
        Candidate("pythae", "pythae_training", arguments, peer=True),
        Candidate("pythae with elbolab's nets", "pythae_training", f"{arguments} --nets elbolab", peer=True),
        Candidate("Lightning", "lightning_training", arguments, peer=True),
        Candidate("DataLoader loop", "dataloader_training", arguments, peer=True),
        Candidate("elbolab without its fast path", "elbolab_plain_training", arguments),
    ]
    return [candidate for candidate in known if candidate.name in ["elbolab", "elbolab in float32", *peers.split(", ")]]


def points(script: str, arguments: str, axis: str, values: list[int]) -> list[Candidate]:
    """A candidate for each value of one argument."""
    return [Candidate(str(value), script, f"{arguments} {axis} {value}") for value in values]


def image_points(model: str) -> list[Candidate]:
    # Of few images more epochs, which count by their median.
    sizes = {1000: 9, 4000: 3, 16_000: 2, 59_500: 1}
    return [
        Candidate(str(images), "elbolab_training", f"--model {model} --images {images} --epochs {epochs}")
        for images, epochs in sizes.items()
    ]


VAE_PEERS = "pythae, pythae with elbolab's nets, Lightning, DataLoader loop, elbolab without its fast path"
SHORT = "--images 4000"
THREADS = sorted({CORES, *(2**power for power in range(10) if 2**power < CORES)})

PARTS: dict[str, Cases] = {
    "training": {
        "vae, batch 64": trainings("--model vae --batch-size 64", VAE_PEERS),
        "vae, batch 256": trainings("--model vae --batch-size 256", VAE_PEERS),
        "iwae with K = 5, batch 64": trainings("--model iwae --images 4000", "pythae"),
        "cnn, batch 64": trainings("--model cnn --images 10000", "Lightning, DataLoader loop"),
    },
    "rows": {"latent_opt, batch 64": [Candidate("elbolab", "latent_opt_training", "--images 8000")]},
    "limit": {"limit": [Candidate("elbolab", "limit", "--epochs 2")]},
    "operators": {
        model: [Candidate("elbolab", "operators", f"--model {model} {SHORT}")] for model in ("vae", "latent_opt", "cnn")
    },
    "compiled": {
        "vae, batch 64": [Candidate("elbolab", "compiled", SHORT)],
        "vae, batch 256": [Candidate("elbolab", "compiled", f"{SHORT} --batch-size 256")],
        "cnn, batch 64": [Candidate("elbolab", "compiled", f"--model cnn {SHORT}")],
        "vae of dense nets, batch 20": [Candidate("elbolab", "compiled", f"{SHORT} --nets dense --batch-size 20")],
    },
    "population": {"population": [Candidate("elbolab", "population", "--images 8000 --epochs 1")]},
    "evaluation": {
        "log p(x) of 20 images at 1,000 samples": [
            Candidate("elbolab", "elbolab_evaluation", "--images 20"),
            Candidate("pythae", "pythae_evaluation", "--images 20", peer=True),
            Candidate("bare decoder", "bare_decoder", "--images 20"),
        ]
    },
    "start": {"start": [Candidate("elbolab", "start")]},
    "tracking": {"tracking": [Candidate("elbolab", "tracking", "--epochs 30")]},
    "scaling": {
        "images in a batch": points("elbolab_training", SHORT, "--batch-size", [16, 32, 64, 128, 256, 512, 1024]),
        "latent dimensions": points("elbolab_training", SHORT, "--latent-dim", [2, 16, 64, 200, 512, 1024]),
        "training images, vae": image_points("vae"),
        "training images, latent_opt": image_points("latent_opt"),
        "importance samples": [
            Candidate(str(samples), "elbolab_evaluation", f"--samples {samples} --images {max(1, 10_000 // samples)}")
            for samples in (10, 100, 1000, 10_000, 100_000)
        ],
        "threads": points("elbolab_training", SHORT, "--threads", THREADS),
        "imports alone": [Candidate("0", "imports")],
    },
    "memory": {
        "memory": [
            Candidate("imports alone", "imports"),
            Candidate("training", "elbolab_training", "--epochs 1"),
        ]
    },
}
# What takes elbolab's defaults takes its default data.
OWN_DATA = {"start": "mnist5k", "tracking": "mnist5k"}
# Of what takes long, or is hardly another in the next round.
MOST_ROUNDS = {"operators": 1, "compiled": 3, "tracking": 3, "scaling": 1, "memory": 1}
