"""What a training spends its time on: the operators that take most of an epoch, by torch's profiler."""

from pathlib import Path

from common import arguments, report
from elbolab_training import prepared
from torch.profiler import ProfilerActivity, profile

from elbolab.training.trainer import Event, train

MOST = 10


def main() -> None:
    given = arguments()
    model, data = prepared(given.model, given)
    profiler = profile(activities=[ProfilerActivity.CPU])

    def note(event: Event) -> None:
        # The first epoch compiles what all use.
        if event.epoch == event.epochs - 1:
            profiler.start()
        elif event.epoch == event.epochs:
            profiler.stop()

    train(model, data, note, Path.cwd())
    found = sorted(profiler.key_averages(), key=lambda item: -item.self_cpu_time_total)
    whole = sum(item.self_cpu_time_total for item in found)
    shares = {item.key: item.self_cpu_time_total / whole for item in found[:MOST]}
    report(shares=shares, calls={item.key: item.count for item in found[:MOST]})


if __name__ == "__main__":
    main()
