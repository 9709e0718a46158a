"""Train a small VAE with pythae, adopt it as a run of elbolab, and evaluate it.

    pip install 'elbolab[pythae]'
    python examples/adopted_pythae.py

The run goes to mlflow.db in the working folder, or to MLFLOW_TRACKING_URI. The last line is log p(x) of test images.
"""

import tempfile
from typing import Any

from pythae.models import VAE, VAEConfig
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig

import elbolab
from elbolab.config.schema import Config
from elbolab.experiment.evaluate import in_a_sentence

DATA: dict[str, Any] = {"train_size": 2000, "val_size": 200, "test_size": 200}
EPOCHS, LATENT_DIM, SIGMA = 10, 16, 0.4


def train(folder: str) -> None:
    """Train on the digits by pythae's own nets and trainer, and save into a folder as pythae does."""
    images = elbolab.load_for(Config(**DATA)).train.images.float() / 255
    model = VAE(VAEConfig(input_dim=tuple(images.shape[1:]), latent_dim=LATENT_DIM))
    config = BaseTrainerConfig(output_dir=folder, num_epochs=EPOCHS, learning_rate=1e-3, no_cuda=True)
    TrainingPipeline(model=model, training_config=config)(train_data=images)
    model.save(folder)


def main() -> str:
    """Train, adopt, evaluate; returns the run's id."""
    with tempfile.TemporaryDirectory() as folder:
        train(folder)
        run = elbolab.adopt(folder, **DATA, likelihood="gaussian", sigma=SIGMA, name="pythae_vae")
    found = elbolab.evaluate_run(run, elbolab.EvaluateConfig(images=20, simulated=5))
    print(f"run {run}")
    print(in_a_sentence(found))
    return run


if __name__ == "__main__":
    main()
