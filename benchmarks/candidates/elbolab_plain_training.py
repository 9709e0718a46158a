"""elbolab's trainer without its fast path: plain nets in float32, Adam not fused, images gathered one by one."""

import torch
from common import arguments, plain
from elbolab_training import measure, prepared
from torch import Tensor

from elbolab.data.batches import Batch, Data, Split
from elbolab.models.base import Model


def take_fast_path_away(model: Model, data: Data) -> None:
    for name, net in list(model.named_children()):
        assert isinstance(net, torch.nn.Sequential)
        setattr(model, name, plain(net))
    adam = torch.optim.Adam(model.parameters(), model.config.lr, eps=model.config.adam_eps)
    model.optimizers = lambda: [adam]
    pixels = {split.name: split.images.float() / 255 for split in data.splits.values()}

    def batch(self: Split, rows: Tensor) -> Batch:
        items = [(pixels[self.name][row], self.labels[row], self.index[row]) for row in rows.tolist()]
        x, y, index = map(torch.stack, zip(*items, strict=True))
        return Batch(x, y, index, self.name, self.digest)

    Split.batch = batch


def main() -> None:
    given = arguments()
    model, data = prepared(given.model, given, precision="float32")
    take_fast_path_away(model, data)
    measure(given, model, data)


if __name__ == "__main__":
    main()
