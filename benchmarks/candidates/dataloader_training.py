"""The usual PyTorch example of a VAE: torchvision's MNIST, ToTensor, a DataLoader that shuffles, ``.item()`` a step."""

import os
import time

import numpy as np
import torch
from common import LR, arguments, plain_model, report_training
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor


def main() -> None:
    given = arguments()
    with np.load(given.data) as arrays:
        index = arrays["index"][: given.images].tolist()
    dataset = Subset(MNIST(os.environ["ELBOLAB_DATA"], train=True, transform=ToTensor()), index)
    loader = DataLoader(dataset, batch_size=given.batch_size, shuffle=True)
    model = plain_model(given)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    seconds, total = [], 0.0
    for _ in range(given.epochs):
        began, total = time.perf_counter(), 0.0
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = model(x, y)
            loss.backward()
            total += loss.item() * len(x)
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    report_training(given, seconds, total / len(dataset))


if __name__ == "__main__":
    main()
