"""The job of the explorer: chosen runs to one page that needs nothing beside it."""

import base64
from collections.abc import Sequence
from pathlib import Path

import torch

from elbolab.config.schema import EvaluateConfig, ExploreConfig
from elbolab.evaluation import Evaluation
from elbolab.experiment.loading import choose_device, load_run
from elbolab.explorer.views import view
from elbolab.models.latent import LatentModel
from elbolab.report.page import environment
from elbolab.report.plots import CHART_SLOTS
from elbolab.report.select import labels_of, once_each, refuse_mixed
from elbolab.report.tables import runs_table
from elbolab.support.errors import UserError
from elbolab.support.paths import public
from elbolab.support.torch_settings import default_settings
from elbolab.support.user_code import Trust
from elbolab.tracking.mlflow_reader import RunRecord, is_latent
from elbolab.tracking.run import nest_project_run
from elbolab.tracking.run_names import find_training


@default_settings()
def explore(ids: Sequence[str], config: ExploreConfig, trust: Trust = False) -> Path:
    """Write the page of one run or of two on the same test images to `config.out`, which is returned.

    Raises UserError where there are more, or where a run is unknown, unfinished, without a latent space, or of other
    data or another observation model than the first.
    """
    if len(ids) > 2:
        raise UserError(f"{len(ids)} runs are too many for one page; name one or two")
    runs = once_each(map(find_training, ids))
    refuse_mixed(runs, "data.digest", "data")
    for run in runs:
        if not is_latent(run):
            raise UserError(f"run {run.id} is a classifier's and has no latent space; name a latent-variable model's")
    nest_project_run(runs[0].id, "explore call")
    page = render(runs, config.images, trust)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(page, encoding="utf-8", newline="\n")
    return config.out


def render(runs: Sequence[RunRecord], images: int, trust: Trust = False) -> str:
    """Return the page: the same test images under each run, with the evaluators' choice and inference."""
    device = choose_device("auto")
    labels = labels_of(runs)
    slots = dict(zip(labels, CHART_SLOTS, strict=False))
    subjects, views, cards = [], [], []
    for run, row, label in zip(runs, runs_table(runs), labels, strict=True):
        model, own = load_run(run.id, device, trust)
        assert isinstance(model, LatentModel)
        subjects.append(Evaluation(model, own, EvaluateConfig(images=images)))
        views.append(view(model, subjects[-1]))
        cards.append({**row, "label": label, "slot": slots[label], "url": run.url, "inference": model.inference})
    data, batches = subjects[0].data, list(subjects[0].batches("test"))
    x = torch.cat([batch.x for batch in batches])
    payload = {
        "shape": x.shape[1:],
        "images": base64.b64encode((x * 255).round().byte().cpu().numpy().tobytes()).decode(),
        "labels": torch.cat([batch.y for batch in batches]).tolist(),
        "index": torch.cat([batch.index for batch in batches]).tolist(),
        "names": data.names or [*map(str, range(data.spec.classes))],
        "runs": views,
    }
    context = {"data": public(runs[0].tags["data.name"]), "cards": cards, "payload": payload}
    return environment().get_template("explorer/page.html.j2").render(context).strip() + "\n"
