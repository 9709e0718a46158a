"""Do the nets' products in bfloat16, where the CPU is fast at them, cost any likelihood?"""

from elbolab import EvaluateConfig, Reproduction, Training
from elbolab.evaluation.metrics import POSTERIOR_ELBO

PRECISIONS = ("float32", "bfloat16")
MODELS = ("cnn", "vae", "latent_opt")

STUDY = Reproduction(
    question="Are models whose nets multiply in bfloat16 while they train as good as those in float32?",
    trainings={
        f"{model} {precision}": Training(model=model, fields={"precision": precision})
        for model in MODELS
        for precision in PRECISIONS
    },
    seeds=(0, 1, 2),
    evaluation=EvaluateConfig(images=200),
    metrics=("test/log_px", "train/log_px", POSTERIOR_ELBO.at("test"), "test/accuracy"),
)
