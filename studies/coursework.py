"""Is latent optimisation inferior to amortized inference, as a published coursework found, under one protocol?"""

from elbolab import EvaluateConfig, Reproduction, Training

STUDY = Reproduction(
    question="Is latent optimisation inferior to amortized inference on 20,000 MNIST images?",
    # Epochs are the models' own: until the validation score has stopped improving.
    base={"dataset": "mnist", "train_size": 20_000},
    trainings={
        "cnn": Training(model="cnn"),
        "vae": Training(model="vae"),
        "latent_opt": Training(model="latent_opt"),
        "ppca": Training(model="ppca"),
    },
    seeds=(0, 1, 2),
    evaluation=EvaluateConfig(classifier="{cnn}"),
    metrics=("test/log_px", "train/log_px", "test/class_preservation", "test/accuracy"),
    references={
        "vae": {"test/log_px": -224.5, "train/log_px": -209},
        "latent_opt": {"test/log_px": -384.4, "train/log_px": -415},
    },
    source="a published coursework on latent optimisation of VAEs on MNIST, whose training objective weighs the KL "
    "term some 24 times",
)
