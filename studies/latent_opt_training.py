"""Which learning rates and batch size train latent_opt best? With the budget of vae_training."""

from elbolab import Study

STUDY = Study(
    model="latent_opt",
    base={"epochs": 20, "schedule": "cosine"},
    search=["lr", "batch_size", "latent_lr"],
    narrow={"lr": (3e-4, 5e-3), "batch_size": (16, 256), "latent_lr": (0.01, 0.3)},
    metrics=["val/log_px"],
    images=100,
    trials=8,
)
