"""What is asked of the user's own model before its training begins: the shapes and numbers that the contract says."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from elbolab.config.schema import Config
from elbolab.data.batches import Batch, Data, DataSpec
from elbolab.models import MODELS
from elbolab.models.adopted import Adopted
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.models.neural import DeepLatentModel, EncoderModel
from elbolab.models.posteriors import Posterior
from elbolab.support.errors import UserError, shown
from elbolab.support.user_code import executed, failure, kept

IMAGES = 2


def construct(kind: type[Model], config: Config, spec: DataSpec, device: str) -> Model:
    """``kind(config, spec)`` on ``device``; raises UserError where code of the user's own fails in it."""
    if not (code := kind.code_of(config)):
        return kind(config, spec).to(device)
    # While the model is trained its files may be edited.
    with kept({str(getattr(config, field, field)): source for field, source in code.items()}):
        model = _called(f"{kind.__name__}(config, spec)", kind, config, spec)
        if not hasattr(model, "spec"):
            raise UserError(f"{kind.__name__}.__init__ does not call super().__init__(config, spec); call it first")
        _ = model.code
    return _called(f"{kind.__name__}(config, spec).to({device!r})", model.to, device)


@torch.no_grad()
def refuse_unsound(model: Model, data: Data) -> None:
    """Raise UserError where weights, or what the model gives of two training images, are not what they should be.

    The model, and the random numbers of its caller, stay as they are.
    """
    name = type(model).__name__
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or is_lazy(value):
            raise UserError(f"{name}.{key} is no dense tensor with values, as a checkpoint keeps; make it one")
        if value.device != model.device:
            where = f"{name}.{key} is on {value.device}, and the model on {model.device}"
            raise UserError(f"{where}; leave it where the model is moved to")
        if not value.isfinite().all():
            raise UserError(f"{name}.{key} has numbers that are not finite before the training; mend its first values")
    if not isinstance(model, LatentModel):
        return
    was_training = model.training
    with torch.random.fork_rng():
        model.eval()
        try:
            _refuse_unsound_latent(model, data, name)
            _refuse_what_is_lost(model, name)
        finally:
            model.train(was_training)


def _refuse_unsound_latent(model: LatentModel, data: Data, name: str) -> None:
    batch = model.observe(data.train.batch(torch.arange(min(IMAGES, len(data.train)))))
    count, dims, shape = len(batch), model.config.latent_dim, tuple(batch.x.shape)
    z = model.prior.sample((count,), torch.Generator().manual_seed(0)).to(model.device)
    if isinstance(model, DeepLatentModel) and "net" in model.code:
        _refuse_unsound_nets(model, batch.x, z[:, : model.config.decoded_dim])
    if isinstance(model, Adopted):
        what = f"the decoder of {model.config.origin} for latent vectors {tuple(z.shape)}"
        _refuse_other(what, _called(what, model.adapter.decode, z), shape)
    # Samples of a posterior come as (S, B, D), its mean as (B, D).
    for given in (z, z.expand(IMAGES, *z.shape)):
        what = f"{name}.decode of latent vectors {tuple(given.shape)}"
        _refuse_other(what, _called(what, model.decode, given), (*given.shape[:-1], *model.params_shape))
    # A table of posteriors is made with the first step.
    if model.inference.partition(":")[0] not in ("encoder", "refined"):
        return
    what = f"{name}.posterior of images {shape}"
    q = _called(what, model.posterior, batch)
    if not isinstance(q, Posterior):
        raise UserError(f"{what} gives {shown(type(q).__name__)}, not a Posterior; return self.family.from_rows(...)")
    for part in ("mean", "variance"):
        _refuse_other(f"the {part} of {what}", _called(f"the {part} of {what}", getattr, q, part), (count, dims))
    if not isinstance(model, Adopted):
        _refuse_unsound_loss(model, batch, name)


def _refuse_unsound_loss(model: LatentModel, batch: Batch, name: str) -> None:
    terms = _called(f"{name}.terms", model.terms, batch, model.train_samples)
    _refuse_other(f"{name}.loss", _called(f"{name}.loss", model.loss, terms, 1.0), ())
    metrics = _called(f"{name}.metrics", model.metrics, terms)
    for key, value in (*metrics.items(), ("score", _called(f"{name}.score", model.score, terms))):
        _refuse_other(f"{name}'s {key}", value, (len(batch),))
    optimizers = _called(f"{name}.optimizers", model.optimizers)
    if not isinstance(optimizers, list) or not all(isinstance(one, Optimizer) for one in optimizers):
        raise UserError(f"{name}.optimizers gives {shown(optimizers)}; it must be a list of torch's optimizers")


def _refuse_what_is_lost(model: LatentModel, name: str) -> None:
    """Raise UserError where the model, made anew from its code and its weights, decodes otherwise."""
    remedy = "keep what it needs as parameters or buffers, and what its code needs in one file"
    with kept({str(getattr(model.config, field, field)): source for field, source in model.code.items()}):
        what = f"{name}, made anew from the code that travels,"
        kind: type[Model] = type(model)
        if "model" in model.code and MODELS.name_of(kind) not in MODELS:
            kind = _called(what, executed, model.code["model"])
        again = _called(what, lambda: kind(model.config, model.spec).to(model.device).eval())
    _called(what, again.load_state_dict, model.state_dict())
    z = model.prior.sample((IMAGES,), torch.Generator().manual_seed(0)).to(model.device)
    one, other = (_called(what, each.decode, z) for each in (model, again))
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise UserError(f"{what} decodes otherwise with the same weights; {remedy}")


def _refuse_unsound_nets(model: DeepLatentModel, x: Tensor, z: Tensor) -> None:
    what = f"the decoder of {model.code['net']} for latent vectors {tuple(z.shape)}"
    _refuse_other(what, _called(what, model.decoder, z), (len(z), *model.params_shape))
    if isinstance(model, EncoderModel):
        what = f"the encoder of {model.code['net']} for images {tuple(x.shape)}"
        _refuse_other(what, _called(what, model.encoder, x), (len(x), model.family.width(z.shape[-1])))


def _called(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} fails: {failure(error)}") from error


def _refuse_other(what: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        raise UserError(f"{what} gives {shown(type(value).__name__)}, not a tensor of shape {shape}")
    if tuple(value.shape) != shape:
        raise UserError(f"{what} has the shape {tuple(value.shape)}, and should have {shape}")
    if not value.is_floating_point() or not value.isfinite().all():
        raise UserError(f"{what} has numbers that are not finite or not real; its first values should be")
