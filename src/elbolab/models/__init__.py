"""The models by name: a new one is a file here and a line in ``MODELS``."""

from elbolab.models.cnn import CNN
from elbolab.models.iwae import IWAE
from elbolab.models.latent import LatentModel, Model
from elbolab.models.latent_opt import LatentOpt
from elbolab.models.ppca import PPCA
from elbolab.models.semi_amortized import SemiAmortized
from elbolab.models.vae import VAE

MODELS: dict[str, type[Model]] = {
    "cnn": CNN,
    "vae": VAE,
    "iwae": IWAE,
    "semi_amortized": SemiAmortized,
    "latent_opt": LatentOpt,
    "ppca": PPCA,
}

__all__ = ["MODELS", "LatentModel", "Model"]
