"""What a measurement hands back, and how it is shown: the same tables on the terminal and in the document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title; `notes` tell what was done, as a reader needs it to judge the numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        parts = [f"### {self.title}", grid(self.head, self.rows), *filter(None, self.notes)]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure to reach, and what came of it."""

    what: str
    reach: str
    measured: str
    reached: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()


def below(what: str, value: float, bound: float, unit: str = "") -> Figure:
    return Figure(what, f"< {bound:g}{unit}", f"{value:.2f}{unit}", value < bound)


def above(what: str, value: float, bound: float, unit: str = "") -> Figure:
    return Figure(what, f"> {bound:g}{unit}", f"{value:.2f}{unit}", value > bound)


def figures_table(figures: Sequence[Figure]) -> Table:
    rows = tuple((f.what, f.reach, f.measured, "reached" if f.reached else "missed") for f in figures)
    return Table("Figures to reach", ("what", "reach", "measured", ""), rows)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; all but the first are numbers or short words, set to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in (head, rule, *rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        row[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
    ]
    return f"| {' | '.join(cells)} |"
