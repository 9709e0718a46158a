"""Which learning rate and batch size train the vae best? With the budget of latent_opt_training."""

from elbolab import Study

STUDY = Study(
    model="vae",
    base={"epochs": 20, "schedule": "cosine"},
    search=["lr", "batch_size"],
    narrow={"lr": (3e-4, 5e-3), "batch_size": (16, 256)},
    metrics=["val/log_px"],
    images=100,
    trials=8,
)
