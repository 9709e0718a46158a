"""The figure of a reproduction as plain values: what a study returns, a run keeps, and the report draws."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from elbolab.config.base import Settings
from elbolab.support.number_formats import dagger


class Line(Settings):
    """Values at growing x, which is positive; ``error`` is empty where it is not known."""

    name: str
    """What the line is of."""
    x: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """Where its values are, on a logarithmic axis, or at which of the chart's ``names``, from 1 on."""
    y: tuple[float, ...]
    """Its values."""
    error: tuple[float, ...] = ()
    """The standard error of each."""
    level: float | None = None
    """A value to compare the line with, dotted."""
    unreliable: bool = False
    """Whether some of it is estimated with a Pareto k that is too high."""

    @property
    def label(self) -> str:
        """What the line is of, marked where it is unreliable."""
        return dagger(self.name, self.unreliable)

    @model_validator(mode="after")
    def _even(self) -> Self:
        if len(self.y) != len(self.x) or len(self.error) not in (0, len(self.x)):
            raise ValueError(
                f"x, y, error of {self.name!r} have {len(self.x)}, {len(self.y)}, {len(self.error)} values"
            )
        return self


class Chart(Settings):
    """Lines over one logarithmic axis, or points beside names."""

    x: str
    """What the horizontal axis counts."""
    y: str
    """What the lines are, with its unit."""
    lines: tuple[Line, ...] = Field(min_length=1)
    """The lines, one for each thing compared."""
    dotted: str = "none"
    """What the dotted levels are."""
    bottom: float | None = None
    """Where the vertical axis begins, for lines that begin far below what matters."""

    names: tuple[str, ...] = ()
    """What the places 1, 2, ... of the horizontal axis are, where it has no numbers: lines are points then."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        places = range(1, len(self.names) + 1)
        if self.names and (beyond := [x for line in self.lines for x in line.x if x not in places]):
            raise ValueError(f"x={beyond[0]:g} has no name; give whole numbers from 1 to {len(self.names)}")
        return self

    @property
    def alt(self) -> str:
        """What the figure shows, in words."""
        if self.names:
            ends = [(line, *(pick(zip(line.y, line.x, strict=True)) for pick in (min, max))) for line in self.lines]
            spans = [
                f"{line.label} from {low[0]:.2f} ({self.names[int(low[1]) - 1]}) to {high[0]:.2f} "
                f"({self.names[int(high[1]) - 1]})"
                for line, low, high in ends
            ]
            return f"{self.y}, by {self.x}: {'; '.join(spans)}"
        spans = [
            f"{line.label} from {line.y[0]:.2f} at {line.x[0]:g} to {line.y[-1]:.2f} at {line.x[-1]:g}"
            + (f", dotted {line.level:.2f}" if line.level is not None else "")
            for line in self.lines
        ]
        return f"{self.y}, by {self.x}: {'; '.join(spans)}"

    @property
    def caption(self) -> str:
        """What bars and dots are."""
        bars = ["Bars: one standard error."] * any(line.error for line in self.lines)
        dots = [f"Dotted: {self.dotted}."] * any(line.level is not None for line in self.lines)
        return " ".join(bars + dots)
