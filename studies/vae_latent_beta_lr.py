"""Which latent size, beta and learning rate give the vae the best validation log p(x)?"""

from elbolab import Study

STUDY = Study(
    model="vae",
    base={"epochs": 15, "schedule": "cosine"},
    search=["latent_dim", "beta", "lr"],
    narrow={"latent_dim": (8, 256), "beta": (0.25, 4.0), "lr": (2e-4, 5e-3)},
    metrics=["val/log_px"],
    images=50,
    trials=30,
)
