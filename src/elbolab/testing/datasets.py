"""What every dataset must do: ``DatasetTests``."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from elbolab.data.readers import DATASETS, Arrays
from elbolab.data.splits import Data, load_data

Reader = Callable[[Path], Arrays]
Load = Callable[..., Data]


class DatasetTests:
    """Derive from it in a test file and override the fixture ``reader`` (and ``folder``, where it reads from one)."""

    @pytest.fixture
    def reader(self) -> Reader:
        """The function that is tested."""
        raise NotImplementedError("override the fixture reader with one that returns your function of a folder")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """What the function is given: the folder of its files."""
        return tmp_path

    @pytest.fixture
    def load(self, reader: Reader, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
        """``load_data`` of this dataset: its splits by sizes and seed."""
        monkeypatch.setitem(DATASETS, "tested", reader)
        return lambda **how: load_data("tested", folder, **how)

    def test_it_is_images_of_bytes_with_a_class_each(self, reader: Reader, folder: Path):
        stored, again = reader(folder), reader(folder)
        parts = [(stored.images, stored.labels), *([stored.test] if stored.test else [])]
        for images, labels in parts:
            assert images.dtype == np.uint8
            assert images.ndim == 4
            assert images.shape[1] in (1, 3, 4)
            assert labels.shape == images.shape[:1]
            assert labels.dtype.kind in "iu"
            assert labels.min() >= 0
        assert len({images.shape[1:] for images, _ in parts}) == 1
        assert np.array_equal(stored.images, again.images)
        assert np.array_equal(stored.labels, again.labels)

    def test_its_splits_share_no_image_and_have_each_class_in_its_proportion(self, load: Load):
        data = load()
        index = torch.cat([split.index for split in data.splits.values()])
        assert len(index.unique()) == len(index)
        assert [len(data.train), len(data.val)] == [data.spec.train, data.spec.val]
        trained, held_out = (
            torch.bincount(split.labels, minlength=data.spec.classes) for split in (data.train, data.val)
        )
        expected = (trained + held_out) * len(data.val) / (len(data.train) + len(data.val))
        assert (held_out - expected).abs().max() <= 1.5

    def test_seed_and_sizes_make_the_split_and_its_digest(self, load: Load):
        size = len(load().train) // 2
        first, again, other, more = (
            load(train_size=size), load(train_size=size), load(train_size=size, split_seed=1), load(train_size=size + 1)
        )  # fmt: skip
        assert first.spec.digest == again.spec.digest
        assert len({first.spec.digest, other.spec.digest, more.spec.digest}) == 3
        # More to train on leaves what is held out as it was.
        assert torch.equal(first.val.index, more.val.index)
        assert torch.equal(first.test.index, more.test.index)
        assert torch.equal(first.train.index, more.train.index[:size])

    def test_batches_are_the_images_from_zero_to_one(self, load: Load):
        data = load()
        batch = data.val.batch(torch.arange(min(20, len(data.val))))
        assert batch.x.dtype == torch.float32
        assert batch.x.shape[1:] == data.spec.shape
        assert torch.equal((batch.x * 255).round().byte(), data.val.images[: len(batch)])
