"""A machine that stops at any point of a training's writes: journal, states and checkpoints are old or new."""

from pathlib import Path
from typing import Any

import pytest
import torch
from power_cuts import Disk, laid_out

from elbolab.experiment.train import prepare
from elbolab.models import MODELS
from elbolab.tracking.journal import Journal, read_journal, read_state
from elbolab.tracking.keys import FINISHED
from elbolab.tracking.records import Begin, End, Record
from elbolab.training.checkpoint import load_checkpoint
from elbolab.training.trainer import Event, train

TINY: dict[str, Any] = {"train_size": 20, "val_size": 10, "test_size": 10, "latent_dim": 2}
TINY |= {"batch_size": 10, "epochs": 3, "net": "mlp", "hidden": 3, "schedule": "constant", "pca_epochs": 0}


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a training in a folder, whatever that holds already."""
    model, data, _ = prepare("vae", MODELS["vae"].Config.parse(TINY))
    train(model, data, lambda event: None, folder)
    return load_checkpoint(folder / "last.safetensors").state_dict()


def test_a_training_goes_on_from_whatever_a_power_cut_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A state at every step, so that some are removed too.
    monkeypatch.setattr("elbolab.training.resume_state.LEAST_SECONDS", 0)
    monkeypatch.setattr("elbolab.training.resume_state.TIMES_ITS_COST", 0)
    (folder := tmp_path / "folder").mkdir()
    model, data, _ = prepare("vae", MODELS["vae"].Config.parse(TINY))
    told: list[int] = []
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        disk.checked = lambda: len(told)

        def report(event: Event) -> None:
            told.append(event.epoch)
            disk.cut()

        train(model, data, report, folder)
    expected = {name: load_checkpoint(folder / f"{name}.safetensors").state_dict() for name in ("last", "best")}
    count = 0
    for image, epochs in laid_out(disk.images, tmp_path / "image"):
        count += 1
        # An epoch that was told of had its checkpoint on the disk.
        if epochs:
            load_checkpoint(image / "best.safetensors")
        for path in image.glob("*.safetensors"):
            if path.name in ("best.safetensors", "last.safetensors"):
                load_checkpoint(path)
        trained(image)
        for name, weights in expected.items():
            got = load_checkpoint(image / f"{name}.safetensors").state_dict()
            assert all(torch.equal(got[key], value) for key, value in weights.items()), (count, name)
    assert count > 20


def test_a_journal_keeps_what_it_said_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept: list[Record] = []
    sent: dict[str, Any] = {}
    (parent := tmp_path / "unfinished").mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(parent, patch)
        disk.checked = lambda: (list(kept), dict(sent))
        journal = Journal(parent / "run")

        def append(record: Record) -> None:
            journal.append(record)
            kept.append(record)
            disk.cut()

        append(Begin(tags={}, params={"lr": "0.1"}))
        journal.update_state(run_id="a")
        sent["run_id"] = "a"
        with journal.append_file("table.csv") as path:
            path.write_text("1,2\n")
        kept.append(journal.records[-1])
        disk.cut()
        journal.update_state(values=1)
        sent["values"] = 1
        append(End(status=FINISHED))
        journal.close(remove=False)
    count = 0
    for image, (records, state) in laid_out(disk.images, tmp_path / "image"):
        count += 1
        if not (image / "run").exists():
            assert not records
            continue
        # More may be there than was said, nothing less, and nothing torn.
        read = read_journal(image / "run")
        assert read[: len(records)] == records
        assert read_state(image / "run").items() >= state.items()
        again = Journal(image / "run")
        assert again.records == read
        for record in read:
            if (name := getattr(record, "file", None)) is not None:
                assert (image / "run" / name).read_text() == "1,2\n"
        again.close(remove=True)
        assert not (image / "run").exists()
    assert count > 8
