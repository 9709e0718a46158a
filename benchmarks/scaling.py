"""How speed and memory grow with sizes: the figure docs/scaling.png, and a sentence for each curve."""

from itertools import pairwise
from pathlib import Path
from typing import Any

Cases = dict[str, dict[str, list[dict[str, Any]]]]

# By this much one measurement may differ from the next.
TOLERANCE = 1.15
# What grows as the size does where growth is linear, and whether the size is a number of those that speed counts.
WORK = {
    "images in a batch": ("a step", True),
    "latent dimensions": ("an image", False),
    "training images, vae": ("an epoch", True),
    "training images, latent_opt": ("an epoch", True),
    "importance samples": ("an image", True),
}
PANELS = {
    "images in a batch": ["images in a batch"],
    "latent dimensions": ["latent dimensions"],
    "training images": ["training images, vae", "training images, latent_opt"],
    "importance samples": ["importance samples"],
    "threads": ["threads"],
}


def curve(case: dict[str, list[dict[str, Any]]]) -> tuple[list[int], list[float], list[float]]:
    """Sizes, images or decodes a second, and most MiB."""
    found = [rounds[0] for rounds in case.values()]
    speeds = [point.get("images_per_s") or point["decodes_per_s"] for point in found]
    return [int(name) for name in case], speeds, [point["peak_bytes"] / 2**20 for point in found]


def memory_of_imports(cases: Cases) -> float:
    """MiB of a process that has done nothing else."""
    return cases["imports alone"]["0"][0]["peak_bytes"] / 2**20


def sentences(cases: Cases) -> list[str]:
    """For each curve whether time and memory grow worse than linearly, and where."""
    imports = memory_of_imports(cases)
    lines = []
    for name, (unit, counts) in WORK.items():
        sizes, speeds, memories = curve(cases[name])
        seconds = [(size if counts else 1) / speed for size, speed in zip(sizes, speeds, strict=True)]
        beyond = [memory - imports for memory in memories]
        lines.append(f"{name}: {growth(f'the time of {unit}', sizes, seconds)}; {growth('memory', sizes, beyond)}.")
    sizes, speeds, _ = curve(cases["threads"])
    gains = [
        f"{speed / speeds[0]:.2f} times the speed by {size}" for size, speed in zip(sizes[1:], speeds[1:], strict=True)
    ]
    return [*lines, f"threads: {', '.join(gains) or 'one core only'}."]


def growth(what: str, sizes: list[int], found: list[float]) -> str:
    worse = [
        f"{after / before:.1f} times for {size / smaller:.1f} from {smaller:,} to {size:,}"
        for (smaller, size), (before, after) in zip(pairwise(sizes), pairwise(found), strict=True)
        if after / before > TOLERANCE * size / smaller
    ]
    return f"{what} grows worse than linearly: {', '.join(worse)}" if worse else f"{what} nowhere worse than linearly"


def draw(cases: Cases, file: Path) -> None:
    """Small multiples: a column for each size, speed above, memory below."""
    # Nothing else of the suite needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), layout="constrained")
    grid = figure.subplots(2, len(PANELS), sharex="col")
    imports = memory_of_imports(cases)
    for (above, below), (size, names) in zip(grid.T, PANELS.items(), strict=True):
        for name in names:
            sizes, speeds, memories = curve(cases[name])
            above.plot(sizes, speeds, marker="o", label=name.rpartition(", ")[2])
            below.plot(sizes, memories, marker="o")
        below.axhline(imports, color="grey", ls=":", lw=1)
        above.set_title(size, fontsize=10)
        above.set_xscale("log")
        for axes in (above, below):
            axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
            axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            above.legend(frameon=False)
    grid[1, -1].set_xticks([int(name) for name in cases["threads"]], cases["threads"])
    grid[1, -1].minorticks_off()
    grid[0, 0].set_ylabel("images/s; of samples, decodes/s")
    grid[1, 0].set_ylabel("most MiB; dotted: imports")
    figure.savefig(file, dpi=110)
