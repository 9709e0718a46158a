"""Latent-variable models with nets: a decoder, and for those that amortise an encoder."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from elbolab.config.limits import WIDEST
from elbolab.config.ranges import Choices, FloatRange, IntRange
from elbolab.data.batches import Batch, Data, DataSpec
from elbolab.models.base import Model
from elbolab.models.latent import LatentConfig, LatentModel
from elbolab.models.networks import NETS, ConvNets, make_nets
from elbolab.models.objectives import Terms
from elbolab.models.posteriors import Posterior
from elbolab.models.ppca import linear_posterior, ppca_start
from elbolab.support.errors import UserError
from elbolab.support.user_code import Source, is_word, source_of

# Halvings of the largest image that is read, down to 2 pixels.
DEEPEST = 9
# Four times as many have 0.3 GB of weights between them.
MOST_CHANNELS = 512

# The stage of a training in which latent vectors are a PPCA's.
PCA_START = 1


class DeepLatentConfig(LatentConfig):
    """The nets of models trained by gradient."""

    net: str = "conv"
    """Kind of the nets: conv (sides from 8 pixels on), mlp with two hidden layers each way (images of any size), or
    your own, path/to/file.py:Name, with encoder(shape, outputs) and decoder(latents, shape)."""
    depth: Annotated[int | None, Field(ge=1, le=DEEPEST), IntRange(1, 4)] = None
    """How often conv nets halve the sides of the images, which are padded where need be [default: until the longer side
    has at most 8 pixels, at least twice]."""
    width: Annotated[int, Field(gt=0, le=MOST_CHANNELS), IntRange(8, 128, log=True)] = 32
    """Channels of the first convolution of conv nets; each halving doubles them, up to four times as many."""
    hidden: Annotated[int, Field(gt=0, le=WIDEST), IntRange(64, 1024, log=True)] = 200
    """Width of both hidden layers of mlp nets."""
    activation: Annotated[Literal["relu", "tanh", "elu", "glu"], Choices(["relu", "tanh", "elu"])] = "relu"
    """Nonlinearity between the layers of either kind; glu, of mlp nets alone, gates them, with twice the weights."""
    prior_components: Annotated[int, Field(gt=0, le=WIDEST), IntRange(2, 100, log=True)] = 10
    """Components of a mixture prior, pseudo-inputs of vamp; other priors have none."""
    start: str | None = None
    """Run whose trained nets are the first ones: decoder, prior and, where both have one, encoder [default: drawn by
    seed]."""

    @field_validator("net")
    @classmethod
    def _known_nets(cls, net: str) -> str:
        if net not in NETS and not is_word(net):
            raise ValueError(f"should be {', '.join(NETS)} or path/to/file.py:Name")
        return net

    @model_validator(mode="after")
    def _gates_of_dense_layers(self) -> Self:
        if self.activation == "glu" and self.net == "conv":
            raise ValueError("activation='glu' gates dense layers, and net='conv' has convolutions; choose net=mlp")
        return self

    def with_runs(self, find_id: Callable[[str], str]) -> Self:
        return self.model_copy(update={"start": find_id(self.start)}) if self.start else self


class EncoderConfig(DeepLatentConfig):
    """Where the nets of a model with an encoder start."""

    has_encoder: ClassVar[bool] = True
    pca_epochs: Annotated[int, Field(ge=0)] = 3
    """Epochs at the beginning in which latent vectors are drawn from the exact posterior of a PPCA of the training
    images, where rows of latent_opt start too: the decoder learns to decode them, the encoder to give them; 0 for none,
    as where start names a run."""

    @property
    def epochs_from_pca(self) -> int:
        """How many epochs these are."""
        return 0 if self.start else self.pca_epochs


class BetaConfig(DeepLatentConfig):
    """The weight of the KL term, for models trained on the beta-weighted ELBO."""

    beta: Annotated[float, Field(ge=0), FloatRange(0.1, 10.0, log=True)] = 1.0
    """Weight of the KL term in the training loss; 1 is the ELBO."""
    beta_warmup: Annotated[float, Field(ge=0)] = 5.0
    """Epochs over which the weight of the KL term rises linearly from 0 to beta."""

    def beta_at(self, epochs: float) -> float:
        """The weight of the KL term, ``epochs`` into the training."""
        return self.beta * (min(1.0, epochs / self.beta_warmup) if self.beta_warmup else 1.0)


class DeepLatentModel(LatentModel):
    """A latent-variable model whose decoder is a net, trained on the ELBO."""

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.decoder = make_nets(config).decoder(config.decoded_dim, self.params_shape)

    @classmethod
    def code_of(cls, config: Any) -> dict[str, Source]:
        nets = {"net": source_of(config.net)} if is_word(config.net) else {}
        return {**super().code_of(config), **nets}

    @property
    def sources(self) -> dict[str, str]:
        return {"start": self.config.start} if self.config.start else {}

    def start_from(self, field: str, source: Model) -> None:
        if not isinstance(source, DeepLatentModel):
            raise UserError(
                f"{field}={self.config.start!r} is a {type(source).__name__}; name a run of a model with nets"
            )
        posterior = ["posterior"] if isinstance(self, EncoderModel) and isinstance(source, EncoderModel) else []
        prior = ["prior", "prior_components"] if self.config.prior != "normal" else ["prior"]
        sizes = {"mlp": ["hidden"], "conv": ["depth", "width"]}.get(self.config.net, [])
        self.refuse_other(field, source, "net", *sizes, "activation", *prior, *posterior)
        theirs = dict(source.named_children())
        for name, net in self.named_children():
            if name in theirs:
                net.load_state_dict(theirs[name].state_dict())

    def refuse_other(self, field: str, source: "DeepLatentModel", *names: str) -> None:
        """Raise UserError where the model that ``field`` names is of other sizes, data or fields ``names``."""
        for name, own, theirs in (
            ("image shape", self.spec.shape, source.spec.shape),
            ("observation model", self.observation_model, source.observation_model),
            # Else it may have seen images that this run is tested on.
            ("data digest", self.spec.digest, source.spec.digest),
            *((name, *(_field(model, name) for model in (self, source))) for name in ("latent_dim", *names)),
        ):
            if own != theirs:
                where = f"{field}={getattr(self.config, field)!r}"
                raise UserError(f"{where} has {name} {theirs}, but this model has {own}; name a run that has the same")

    @property
    def layers(self) -> nn.Sequential | None:
        if not isinstance(self.decoder, nn.Sequential):
            return None
        return nn.Sequential(*self.decoder, self.likelihood.mean_layer())

    @property
    def stacks(self) -> bool:
        # Of nets of the user's own nobody knows.
        return super().stacks and "net" not in self.code

    def decode(self, z: Tensor) -> Tensor:
        activations = self.compute(self.decoder, z.reshape(-1, z.shape[-1]))
        return self.likelihood.params(activations).reshape(*z.shape[:-1], *self.params_shape)


def _field(model: DeepLatentModel, name: str) -> Any:
    """A field of the model's config; of the depth of conv nets the number, also where it is automatic."""
    nets = make_nets(model.config)
    if name == "depth" and isinstance(nets, ConvNets):
        return nets.depth_for(model.spec.shape)
    return getattr(model.config, name)


class EncoderModel(DeepLatentModel):
    """q(z | x) of the family ``posterior`` with all its parameters from one encoder (Kingma & Welling 2014, eq. 9)."""

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = make_nets(config).encoder(spec.shape, self.family.width(config.decoded_dim))
        self.prior.attach(self)
        self._ppca: tuple[Tensor, Tensor, float] | None = None

    def prepare(self, data: Data) -> None:
        if not self.config.start:
            self.prior.begin(data.train.images)
        if self.config.epochs_from_pca:
            mean, loadings, sigma = ppca_start(data.train.images, self.config)
            self._ppca = mean.to(self.device), loadings.to(self.device), sigma

    def begin_epoch(self, epoch: int) -> None:
        self.stage = PCA_START if epoch <= self.config.epochs_from_pca else 0

    @property
    def compiles(self) -> bool:
        # What cannot be stacked is no pure function of its weights and images, as a compiler would have it.
        return self.config.net == "mlp" and self.stacks

    def posterior(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        return self.encode(batch.x)

    def encode(self, x: Tensor) -> Posterior:
        """The posterior that the encoder gives of each of the images (B, C, H, W)."""
        return self.family.from_rows(self.compute(self.encoder, x))

    def pca_posterior(self, batch: Batch) -> Posterior:
        """The posterior of each image that its latent vectors are drawn from in the first epochs."""
        assert self._ppca is not None, "prepare() comes first"
        return self.family.of(linear_posterior(batch.x.flatten(1), *self._ppca))

    @property
    def starts(self) -> bool:
        """Whether a step would be one of the first epochs, whose latent vectors are a PPCA's."""
        return self.training and self.stage == PCA_START

    def terms(self, batch: Batch, samples: int = 1, generator: torch.Generator | None = None) -> Terms:
        if not self.starts:
            return super().terms(batch, samples, generator)
        q = self.pca_posterior(batch)
        z = q.sample(samples, generator)
        terms = self.terms_at(batch, q, z)
        return replace(terms, also={**terms.also, "encoder_nll": -self.encode(batch.x).log_prob(z).mean(0)})

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        # Of the first epochs only, while every other figure is one of all epochs.
        return {key: value for key, value in super().metrics(terms).items() if key != "encoder_nll"}

    def loss(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """The training loss; while latent vectors are a PPCA's, -log p(x | z) - log q(z | x), q the encoder's."""
        if not self.starts:
            return super().loss(terms, kl_weight)
        return (terms.also["encoder_nll"] - terms.log_px_z.mean(0)).mean()
