"""A VAE by latent optimisation: without an encoder, every training image owns the parameters of its posterior."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from elbolab.config.ranges import Choices, FloatRange, IntRange
from elbolab.data.batches import Batch, Data, DataSpec, Split
from elbolab.models.base import Model
from elbolab.models.fitting import FIT_LR, FIT_STEPS, START_LOG_VAR, choose, fit_anew
from elbolab.models.neural import BetaConfig, DeepLatentModel, EncoderModel
from elbolab.models.posteriors import Posterior
from elbolab.models.ppca import linear_posterior, ppca_start
from elbolab.support.errors import UserError

STARTS = ("zeros", "normal", "pca")
ENCODED_AT_ONCE = 500
ROUGH_STEPS, ROUGH_LR = 50, 0.2


class LatentOptConfig(BetaConfig):
    """How the rows of the table are started and trained, and how an image without a row is fitted."""

    latent_init: Annotated[str, Choices(STARTS)] = "pca"
    """Start of the rows, one of zeros, normal, pca and encoder:RUN: means zero, means drawn from the prior, the exact
    posterior of a PPCA of the images, or the posteriors of the trained encoder of the run RUN."""
    latent_lr: Annotated[float, Field(gt=0), FloatRange(0.005, 0.5, log=True)] = 0.05
    """Learning rate of the rows at the first step; it falls by the same schedule as lr."""
    latent_steps: Annotated[int, Field(gt=0), IntRange(1, 8)] = 2
    """Steps on a batch at each visit, of its rows and the decoder together."""
    fit_steps: Annotated[int, Field(gt=0)] = FIT_STEPS
    """Steps that fit the posterior of an image without a row, the decoder frozen."""
    fit_lr: Annotated[float, Field(gt=0)] = FIT_LR
    """Learning rate of that fit at its first step; it falls to 0 along a half cosine."""
    fit_restarts: Annotated[int, Field(gt=0)] = 1
    """Starts of that fit, the first from the prior's mean, the others drawn from it; each image keeps its best."""

    @field_validator("latent_init")
    @classmethod
    def _known(cls, start: str) -> str:
        if start not in STARTS and not re.fullmatch(r"encoder:.+", start):
            raise ValueError("should be zeros, normal, pca or encoder:RUN with a run")
        return start

    @property
    def encoder_run(self) -> str | None:
        """The run whose encoder gives the rows, if one does."""
        return self.latent_init.removeprefix("encoder:") if ":" in self.latent_init else None

    def with_runs(self, find_id: Callable[[str], str]) -> Self:
        found = super().with_runs(find_id)
        run = self.encoder_run
        return found.model_copy(update={"latent_init": f"encoder:{find_id(run)}"}) if run else found


class RowAdam(torch.optim.Optimizer):
    """Adam on the rows of a table that a step visited, with each row's own moments and step count.

    The update of Kingma & Ba 2015 (algorithm 1), where unvisited rows neither move nor decay; gradients must be sparse.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            first, second = group["betas"]
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(table), torch.zeros_like(table)
                    state["steps"] = torch.zeros(len(table), 1, device=table.device)
                gradient = table.grad.coalesce()
                rows, values = gradient.indices()[0], gradient.values()
                steps = state["steps"].index_select(0, rows).add_(1)
                mean = state["mean"].index_select(0, rows).lerp_(values, 1 - first)
                square = state["square"].index_select(0, rows).lerp_(values.square(), 1 - second)
                for name, moment in (("steps", steps), ("mean", mean), ("square", square)):
                    state[name].index_copy_(0, rows, moment)
                scale = square.div_(1 - second**steps).sqrt_().add_(group["eps"])
                table.index_add_(0, rows, mean.div_(1 - first**steps).div_(scale), alpha=-group["lr"])


class LatentOpt(DeepLatentModel):
    """q(z | x_i) with a free row of parameters for each image, trained with the decoder (Bojanowski et al. 2018).

    The rows of validation images are updated as often as training rows, but never move the decoder. Any other image is
    fitted from nothing by ``infer``.
    """

    Config = LatentOptConfig
    train_index: Tensor
    val_index: Tensor

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        width = self.family.width(config.latent_dim)
        self.train_rows = nn.Parameter(torch.zeros(spec.train, width))
        self.val_rows = nn.Parameter(torch.zeros(spec.val, width))
        self.register_buffer("train_index", torch.zeros(spec.train, dtype=torch.int64))
        self.register_buffer("val_index", torch.zeros(spec.val, dtype=torch.int64))
        self._first = {"train_rows": 0, "val_rows": 0}
        self._optimizers: list[torch.optim.Optimizer] = []
        self._encode: Callable[[Batch], Posterior] | None = None

    @property
    def sources(self) -> dict[str, str]:
        return super().sources | ({"latent_init": self.config.encoder_run} if self.config.encoder_run else {})

    def start_from(self, field: str, source: Model) -> None:
        if field != "latent_init":
            super().start_from(field, source)
            return
        if not isinstance(source, EncoderModel):
            where = f"latent_init={self.config.latent_init!r}"
            raise UserError(f"{where} is a {type(source).__name__}, which has no encoder; name a run of a vae")
        self.refuse_other(field, source)
        # A method, since a module would become a part of this one and of its checkpoints.
        self._encode = lambda batch: source.infer(source.observe(batch))

    def prepare(self, data: Data) -> None:
        if self.config.latent_init == "pca":
            mean, loadings, sigma = ppca_start(data.train.images, self.config)
            mean, loadings = mean.to(self.device), loadings.to(self.device)
            self._encode = lambda batch: linear_posterior(batch.x.flatten(1), mean, loadings, sigma)
        for split in (data.train, data.val):
            index, order = split.index.sort()
            self.get_buffer(f"{split.name}_index").copy_(index)
            self.get_parameter(f"{split.name}_rows").data = self._start(split)[order]

    def _start(self, split: Split) -> Tensor:
        shape = (len(split), self.config.latent_dim)
        if self._encode is not None:
            return torch.cat([self.family.of(self._encode(batch)).rows for batch in split.batches(ENCODED_AT_ONCE)])
        assert self.config.encoder_run is None, f"latent_init={self.config.latent_init!r} needs start_from() first"
        mean = self.prior.sample(shape[:1]) if self.config.latent_init == "normal" else self.prior.zero.expand(shape)
        return self.family.around(mean, torch.full_like(mean, START_LOG_VAR)).rows

    def optimizers(self) -> list[torch.optim.Optimizer]:
        if not self._optimizers:
            self._optimizers = [
                self.adam([*self.decoder.parameters(), *self.prior.parameters()]),
                RowAdam([self.train_rows, self.val_rows], self.config.latent_lr, eps=self.config.adam_eps),
            ]
        return self._optimizers

    def posterior(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        if batch.split not in ("train", "val"):
            raise ValueError(f"{batch.split} images have no row; infer() fits their posterior")
        if batch.digest != self.spec.digest:
            raise UserError(
                f"this table of posteriors belongs to the data with digest {self.spec.digest}, not to the data with "
                f"digest {batch.digest}; load the data that it was trained on, or fit the images by infer()"
            )
        return self.family.from_rows(self._rows(batch))

    def _rows(self, batch: Batch) -> Tensor:
        table = f"{batch.split}_rows"
        rows = F.embedding(self.place(batch)[0] - self._first[table], self.get_parameter(table), sparse=True)
        if rows.requires_grad:
            # A row is one image's own: its gradient is that image's, not its share of the mean over a batch.
            rows.register_hook(lambda gradient: gradient * len(batch))
        return rows

    @property
    def sharded(self) -> dict[str, int]:
        return {"train_rows": self.spec.train, "val_rows": self.spec.val}

    def keep_rows(self, owned: Callable[[int], slice]) -> None:
        for table, rows in self.sharded.items():
            own = owned(rows)
            self._first[table] = own.start
            parameter = self.get_parameter(table)
            parameter.data = parameter.data[own].clone()

    def place(self, batch: Batch) -> tuple[Tensor, int]:
        index = self.get_buffer(f"{batch.split}_index")
        return torch.searchsorted(index, batch.index), len(index)

    @property
    def steps_per_visit(self) -> int:
        return self.config.latent_steps

    def kl_weight(self, epochs: float) -> float:
        return self.config.beta_at(epochs)

    def refresh(self, batch: Batch, kl_weight: float) -> None:
        """As many updates of validation rows as a visit gives to training rows, the decoder frozen."""
        row_adam = self.optimizers()[1]
        for _ in range(self.config.latent_steps):
            with torch.enable_grad():
                q = self.family.from_rows(self._rows(batch))
                bound = self.bound(batch.x, q, kl_weight=kl_weight).mean()
            bound.neg().backward(inputs=[self.val_rows])
            row_adam.step()
            row_adam.zero_grad()

    @property
    def inference(self) -> str:
        steps, rate, restarts = self.config.fit_steps, self.config.fit_lr, self.config.fit_restarts
        starts = "1 start" if restarts == 1 else f"best of {restarts} starts"
        return f"fitted: {steps} Adam steps at rate {rate:g} falling to 0, {starts}, decoder frozen"

    @property
    def steps_to_infer(self) -> int:
        return self.config.fit_steps * self.config.fit_restarts

    def infer(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        """Maximise the ELBO over each image's own posterior, the decoder frozen, from no stored row."""
        steps, rate = self.config.fit_steps, self.config.fit_lr
        fits = [
            fit_anew(self, batch.x, steps, rate, restart > 0, generator) for restart in range(self.config.fit_restarts)
        ]
        with torch.no_grad():
            bounds = torch.stack([self.bound(batch.x, q, 16, generator) for q in fits])
        return choose(fits, bounds)

    def infer_roughly(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        """The row of a training image, and fewer and longer steps for any other."""
        if (stored := self.stored_posterior(batch)) is not None:
            return stored
        return fit_anew(self, batch.x, min(ROUGH_STEPS, self.config.fit_steps), ROUGH_LR, generator=generator)

    def stored_posterior(self, batch: Batch) -> Posterior | None:
        return self.posterior(batch).detach() if batch.split == "train" else None
