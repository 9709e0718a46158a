"""Line figures as inline SVG and digits as PNG data addresses; colours come from the page, so both themes work."""

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from elbolab.report.chart import Chart
from elbolab.support.errors import UserError

INK = "#010203"
NARROW, WIDE = (3.7, 2.6), (4.9, 2.5)
FLOOR_SLOT = 4
SLOTS = (*range(4), *range(5, 12))
CHART_SLOTS = (1, 2, 3, 0, *SLOTS[4:])
BINS = 30
MARKERS = "osD^vPX*<>ph"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "elbolab",
    "svg.fonttype": "none",
    # Names come from a server, and a dollar sign in one is no formula.
    "text.parse_math": False,
    "font.size": 9,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Series:
    """One line or row of points: its name, colour slot, positions, values and, where known, standard errors.

    ``level`` is a value to compare a line with.
    """

    name: str
    slot: int
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    dashed: bool = False
    level: float | None = None


def colours(labels: Iterable[str]) -> dict[str, int]:
    """The colour slot of each label, by their order; after eleven they come again."""
    return dict(zip(dict.fromkeys(labels), cycle(SLOTS), strict=False))


def colour(slot: int) -> str:
    """Return the placeholder that the page replaces by its variable `--m{slot}`."""
    return f"#0102{16 + slot:02x}"


def _look(slot: int, tint: Callable[[int], str] = colour) -> dict[str, Any]:
    return {"color": tint(slot), "marker": MARKERS[slot]}


def limits(series: Sequence[Series]) -> tuple[float, float] | None:
    """Where the vertical axis ends if the first fifth of the values of the lines would take more than half of it."""
    levels = [line.level for line in series if line.level is not None]
    every = [*levels, *(value for line in series for value in line.y)]
    later = [*levels, *(value for line in series for value in line.y[len(line.y) // 5 :])]
    low, high = min(later), max(later)
    margin = 0.05 * (high - low)
    return (low - margin, high + margin) if max(every) - min(every) > 2 * (high - low) else None


def cut_note(figures: Iterable[Sequence[Series]]) -> str:
    """Say that some of the figures do not show everything, if so."""
    return " The first epochs lie beyond the axis." if any(map(limits, figures)) else ""


def curves(name: str, title: str, series: Sequence[Series], size: tuple[float, float] = NARROW) -> str:
    """Draw values by epoch as inline SVG, one line a series, dashed where the series says so."""

    def paint(axes: Axes) -> None:
        for line in series:
            dashes, every = (0, (4, 2)) if line.dashed else "-", max(1, len(line.x) // 6)
            axes.plot(line.x, line.y, ls=dashes, ms=3, markevery=every, **_look(line.slot))
        axes.set_ylim(limits(series))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))

    spans = [f"{s.name} from {s.y[0]:.4g} to {s.y[-1]:.4g}" for s in series if len(s.y)]
    alt = f"{title} by epoch: " + "; ".join(spans)
    return _svg(name, title, alt, size, paint)


def by_cost(name: str, title: str, label: str, series: Sequence[Series]) -> str:
    """Draw values by what they cost on a logarithmic axis as inline SVG; a level is a dotted line."""

    def paint(axes: Axes) -> None:
        for line in series:
            look = _look(line.slot)
            if line.level is not None:
                axes.axhline(line.level, color=look["color"], ls=":", lw=1.5)
            axes.plot(line.x, line.y, ms=3, markevery=max(1, len(line.x) // 6), **look)
        axes.set_ylim(limits(series))
        axes.set_xscale("log")
        axes.set_xlabel(label)
        costs = [x for line in series for x in line.x]
        few = max(costs) < 500 * min(costs)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(6))

    spans = [f"{s.name} from {s.y[0]:.4g} at {s.x[0]:.4g} to {s.y[-1]:.4g} at {s.x[-1]:.4g}" for s in series if s.y]
    spans += [f"{s.name} at {s.level:.4g}, dotted" for s in series if s.level is not None]
    return _svg(name, title, f"{title} by {label}: " + "; ".join(spans), NARROW, paint)


def by_samples(name: str, title: str, series: Sequence[Series]) -> str:
    """Draw values by a number of samples on a logarithmic axis, one line a series, with bars of one standard error."""
    spans = [f"{s.name} from {s.y[0]:.2f} at {s.x[0]:g} to {s.y[-1]:.2f} at {s.x[-1]:g}" for s in series]
    alt = f"{title} by number of samples: " + "; ".join(spans)
    return _svg(name, title, alt, WIDE, lambda axes: _logarithmic(axes, "samples", series))


def chart(name: str, shown: Chart) -> str:
    """Draw a reproduction's figure as inline SVG; its lines have the colours of ``slots``."""
    title = shown.y[:1].upper() + shown.y[1:]
    return _svg(name, title, shown.alt, WIDE, lambda axes: _paint_chart(axes, shown))


def slots(shown: Chart) -> dict[str, int]:
    """The colour slot of each line of a reproduction's figure, by name."""
    return dict(zip((line.label for line in shown.lines), cycle(CHART_SLOTS), strict=False))


def chart_png(shown: Chart) -> bytes:
    """Draw a reproduction's figure as a PNG that stands alone, with a legend."""
    whole = Figure(figsize=(7, 4), layout="constrained")
    axes = whole.subplots()
    _paint_chart(axes, shown, lambda slot: f"C{CHART_SLOTS.index(slot) % 10}")
    axes.set_ylabel(shown.y)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    whole.savefig(buffer, dpi=120)
    return buffer.getvalue()


def _paint_chart(axes: Axes, shown: Chart, tint: Callable[[int], str] = colour) -> None:
    slot = slots(shown)
    lines = [Series(one.label, slot[one.label], one.x, one.y, one.error, level=one.level) for one in shown.lines]
    if shown.names:
        _named(axes, shown, lines, tint)
    else:
        _logarithmic(axes, shown.x, lines, tint)
    if shown.bottom is not None:
        axes.set_ylim(bottom=shown.bottom)


def _named(axes: Axes, shown: Chart, series: Sequence[Series], tint: Callable[[int], str]) -> None:
    for number, row in enumerate(series):
        look, at = _look(row.slot, tint), np.asarray(row.x) + _shift(number, len(series))
        axes.errorbar(at, row.y, row.error or None, ms=4.5, elinewidth=1.1, label=row.name, ls="none", **look)
        if row.level is not None:
            axes.axhline(row.level, color=look["color"], ls=":", lw=1.2)
    axes.set_xticks(range(1, len(shown.names) + 1), shown.names, rotation=45, ha="right", parse_math=False)
    axes.set_xlabel(shown.x)


def _logarithmic(axes: Axes, label: str, series: Sequence[Series], tint: Callable[[int], str] = colour) -> None:
    for line in series:
        look = _look(line.slot, tint)
        axes.errorbar(line.x, line.y, line.error or None, ms=3.6, elinewidth=1.1, label=line.name, **look)
        if line.level is not None:
            axes.axhline(line.level, color=look["color"], ls=":", lw=1.2)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def by_class(name: str, title: str, series: Sequence[Series], classes: Mapping[int, str]) -> str:
    """Draw one value a class and series as points with bars of one standard error."""

    def paint(axes: Axes) -> None:
        for number, row in enumerate(series):
            _points(axes, row, np.asarray(row.x) + _shift(number, len(series)), row.y, vertical=True)
        ticks = sorted({int(x) for row in series for x in row.x})
        names = [classes[tick] for tick in ticks]
        # A dollar in a name begins no formula.
        axes.set_xticks(ticks, names, rotation=45 * any(len(name) > 3 for name in names), parse_math=False)
        axes.set_xlabel("class")
        axes.grid(axis="x", visible=False)

    spans = []
    for row in series:
        low, high = int(np.argmin(row.y)), int(np.argmax(row.y))
        worst, best = (classes[int(row.x[at])] for at in (low, high))
        spans.append(f"{row.name} from {row.y[low]:.2f} (class {worst}) to {row.y[high]:.2f} ({best})")
    return _svg(name, title, f"{title} a class: " + "; ".join(spans), WIDE, paint)


def ranking(name: str, title: str, series: Sequence[Series]) -> str:
    """Draw one row a series: its first value filled, its second hollow, with bars of one standard error."""

    def paint(axes: Axes) -> None:
        for number, row in enumerate(series):
            _points(axes, row, np.full(len(row.y), number), row.y, vertical=False)
        axes.set_yticks(range(len(series)), [row.name for row in series])
        axes.set_ylim(len(series) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)

    spans = [f"{row.name} " + " and ".join(f"{value:.2f}" for value in row.y) for row in series]
    alt = f"{title}, test then training: " + "; ".join(spans)
    return _svg(name, title, alt, (WIDE[0], 0.62 + 0.25 * len(series)), paint)


def histograms(name: str, title: str, label: str, groups: Mapping[str, np.ndarray]) -> str:
    """Draw how values are distributed, a step line a group, as shares of it in bins that all groups share."""
    every = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(every[np.isfinite(every)], BINS)

    def paint(axes: Axes) -> None:
        for slot, (group, values) in zip(cycle(SLOTS), groups.items(), strict=False):
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, color=colour(slot), lw=1.5, label=group)
        axes.set_xlabel(label)
        axes.legend(frameon=False, fontsize=8)

    means = "; ".join(f"{group} {values.mean():.4g} on average" for group, values in groups.items())
    return _svg(name, title, f"{title}, {label}: {means}", NARROW, paint)


def _shift(number: int, count: int) -> float:
    """How far beside its place one of several series is drawn, so that none covers another."""
    return min(0.16, 0.8 / count) * (number - (count - 1) / 2)


def _points(axes: Axes, row: Series, at: np.ndarray, values: Sequence[float], vertical: bool) -> None:
    """Plot a series' points, the second of a horizontal row hollow."""
    for number, (place, value, error) in enumerate(zip(at, values, row.error, strict=True)):
        point = (place, value) if vertical else (value, place)
        bars: dict[str, Any] = {} if np.isnan(error) else {"yerr" if vertical else "xerr": error}
        face: dict[str, Any] = {} if vertical or number == 0 else {"mfc": "none"}
        axes.errorbar(*point, **bars, **_look(row.slot), **face, ms=4.6, elinewidth=1.1, ls="")


def _svg(name: str, title: str, alt: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """Paint one axes and return it as SVG whose ids start with the figure's name."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True)
        axes.set_axisbelow(True)
        paint(axes)
        axes.set_title(title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue().decode(), name, alt)


def inline(svg: str, name: str, alt: str) -> str:
    """Make a matplotlib SVG safe beside others in a page: own ids, page colours, an accessible name, no fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Only ids that something refers to are kept: the rest would double the page's size.
    names = {a or b for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in names else "", svg)
    svg = re.sub(r"url\(#|href=\"#", lambda m: f"{m[0]}{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"#0102([0-9a-f]{2})", lambda m: f"var(--m{int(m[1], 16) - 16})", svg)
    box = re.search(r'viewBox="([^"]+)"', svg)
    head = f'<svg role="img" aria-label="{html.escape(alt)}" viewBox="{box[1] if box else ""}" '
    return head + 'xmlns:xlink="http://www.w3.org/1999/xlink">' + svg[svg.index(">") + 1 :].strip()


def png(pixels: np.ndarray) -> str:
    """Encode a uint8 image (H, W, C) of one, three or four channels as a PNG data address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return _address(buffer.getvalue())


def picture(content: bytes, name: str) -> tuple[str, int, int]:
    """Return a PNG as a data address, and its width and height in pixels; raises UserError where it is none."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is no picture: {error}") from error
    return _address(content), width, height


def _address(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
