"""The usual PyTorch example of a VAE: torchvision's MNIST, ToTensor, a DataLoader that shuffles, ``.item()`` a step."""

import os
import time

import torch
from common import LR, arguments, load_array, plain_model, report_training
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor


def main() -> None:
    given = arguments()
    mnist = MNIST(os.environ["ELBOLAB_DATA"], train=True, transform=ToTensor())
    dataset = Subset(mnist, load_array(given, "index").tolist())
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
