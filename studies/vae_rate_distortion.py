"""What does the vae pay in distortion for each nat of rate? The front of Alemi et al. 2018, traced by beta."""

from elbolab import Study

STUDY = Study(
    model="vae",
    base={"epochs": 15, "schedule": "cosine"},
    search=["beta", "latent_dim"],
    narrow={"latent_dim": (8, 256)},
    metrics=["val/kl", "val/distortion"],
    trials=30,
)
