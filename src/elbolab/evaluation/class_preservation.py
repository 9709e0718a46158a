"""The accuracy of a classifier, and whether a generative model keeps the class that the classifier sees."""

from typing import Any

import torch
from torch import Tensor

from elbolab.evaluation import metrics as m
from elbolab.evaluation.base import Evaluation, Results
from elbolab.models.cnn import CNN
from elbolab.models.latent import LatentModel
from elbolab.support.statistics import accuracy, wilson


def classes(evaluation: Evaluation) -> Results:
    """Accuracy of a classifier, or class preservation of a latent-variable model as its classifier sees it."""
    if isinstance(evaluation.model, CNN):
        return _accuracy(evaluation.model, evaluation)
    if isinstance(evaluation.model, LatentModel) and evaluation.classifier is not None:
        return _preservation(evaluation.model, evaluation, *evaluation.classifier)
    return Results()


@torch.no_grad()
def _predict(cnn: CNN, x: Tensor) -> Tensor:
    return cnn.logits(x).argmax(-1)


def _confusion(true: Tensor, predicted: Tensor, count: int) -> list[list[int]]:
    """Counts (count, count): row ``true``, column ``predicted``."""
    return torch.bincount(true * count + predicted, minlength=count * count).reshape(count, count).tolist()


@torch.no_grad()
def _accuracy(cnn: CNN, evaluation: Evaluation) -> Results:
    """On every image of each split: a classifier is cheap."""
    splits, losses = {}, {}
    for name, split in evaluation.data.splits.items():
        batches = [(batch.y, cnn.logits(batch.x).log_softmax(-1)) for batch in split.batches(500)]
        y, log_p = (torch.cat(parts) for parts in zip(*batches, strict=True))
        predicted = log_p.argmax(-1)
        splits[name] = {"n": len(y), "confusion": _confusion(y, predicted, evaluation.data.spec.classes)}
        losses[name] = -log_p.gather(1, y[:, None]).double().mean().item()
    metrics = {m.ACCURACY.at(m.TEST): accuracy(splits[m.TEST]["confusion"])[0], m.LOSS.at(m.TEST): losses[m.TEST]}
    return Results(metrics, {}, {"classes.json": {"splits": splits}})


def _preservation(model: LatentModel, evaluation: Evaluation, run: str, cnn: CNN) -> Results:
    metrics: dict[str, float] = {}
    splits: dict[str, Any] = {}
    for split in evaluation.data.splits:
        parts = [
            (batch.y, _predict(cnn, batch.x), _predict(cnn, model.reconstruct(q)))
            for batch, q in evaluation.with_inferred(split)
        ]
        y, original, reconstruction = (torch.cat(values) for values in zip(*parts, strict=True))
        splits[split] = {"n": len(y), "confusion": _confusion(original, reconstruction, evaluation.data.spec.classes)}
        metrics[m.ACCURACY_ORIGINAL.at(split)] = (original == y).double().mean().item()
        seen = {"": reconstruction}
        if fitted := evaluation.fitted(split):
            seen["fitted_"] = torch.cat([_predict(cnn, model.reconstruct(q)) for q in fitted])
        for start, predicted in seen.items():
            metrics[f"{split}/{start}{m.ACCURACY_RECONSTRUCTION.name}"] = (predicted == y).double().mean().item()
            kept = (predicted == original).double().cpu().numpy()
            numbers = (float(kept.mean()), *wilson(int(kept.sum()), len(kept)))
            names = m.CLASS_PRESERVATION.names
            metrics |= {f"{split}/{start}{name}": x for name, x in zip(names, numbers, strict=True)}
    test = evaluation.data.test
    correct = sum((_predict(cnn, batch.x) == batch.y).sum().item() for batch in test.batches(500))
    judge = {"cnn_run": run, "cnn_test_accuracy": correct / len(test)}
    ten = {split: _examples(model, evaluation, cnn, split) for split in ("train", "val")}
    tags = {f"evaluation.{key}": str(value) for key, value in judge.items()}
    return Results(metrics, tags, {"classes.json": {**judge, "splits": splits, "ten": ten}})


def _examples(model: LatentModel, evaluation: Evaluation, cnn: CNN, split: str) -> list[dict[str, int]]:
    """The images that training shows, one a class, with the posteriors that training has for them."""
    generator = evaluation.generator("fixed digits")
    batch = model.observe(evaluation.data.splits[split].examples(), generator)
    with torch.no_grad():
        reconstruction = _predict(cnn, model.reconstruct(model.posterior(batch, generator)))
    columns = (batch.index, batch.y, _predict(cnn, batch.x), reconstruction)
    names = ("index", "label", "original", "reconstruction")
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
