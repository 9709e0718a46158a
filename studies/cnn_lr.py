"""Which learning rate and batch size read the most validation digits?"""

from elbolab import Study

STUDY = Study(
    model="cnn",
    search=["lr", "batch_size"],
    metrics=["val/accuracy"],
    trials=30,
)
