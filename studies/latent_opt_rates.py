"""Which latent size, rates, steps a visit and start of the table make latent optimisation work?"""

from elbolab import Study

STUDY = Study(
    model="latent_opt",
    base={"epochs": 10},
    search=["latent_dim", "lr", "latent_lr", "latent_steps", "latent_init"],
    narrow={"latent_dim": (8, 256), "lr": (3e-4, 5e-3), "latent_steps": (1, 4)},
    metrics=["val/log_px"],
    images=100,
    trials=40,
)
