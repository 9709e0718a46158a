"""Saves the training images that every candidate gets; mnist5k's where MNIST is not to be had."""

from pathlib import Path

import numpy as np
from common import MOST_IMAGES, arguments, report

from elbolab.config.schema import default_data_dir
from elbolab.data.splits import Data, load_data
from elbolab.support.errors import UserError

VAL_SIZE = 500


def load(images: int) -> Data:
    try:
        return load_data("mnist", default_data_dir(), train_size=images, val_size=VAL_SIZE)
    except UserError:
        return load_data(
            "mnist5k", default_data_dir(), train_size=min(images, MOST_IMAGES["mnist5k"]), val_size=VAL_SIZE
        )


def main() -> None:
    given = arguments()
    data = load(given.images)
    train = data.train
    np.savez(Path(given.data), images=train.images.numpy(), labels=train.labels.numpy(), index=train.index.numpy())
    report(dataset=data.name, images=len(train))


if __name__ == "__main__":
    main()
