"""What the benchmark makes of its samples, and how it shows it."""

from __future__ import annotations

import pytest

from bench import report, stats


def test_percentile_lies_between_the_samples_next_to_it() -> None:
    assert stats.percentile(range(101), 99) == pytest.approx(99)
    assert stats.p99([1.0, 2.0]) == pytest.approx(1.99)


def test_grid_lines_up() -> None:
    assert report.grid(("", "ms"), (("sh", "1.5"), ("jobworker", "12.25"))) == (
        "|           |    ms |\n| --------- | ----: |\n| sh        |   1.5 |\n| jobworker | 12.25 |"
    )


def test_a_table_leaves_out_empty_notes() -> None:
    table = report.Table("Title", ("a",), (("b",),), ("", "A note."))
    assert table.markdown() == "### Title\n\n| a |\n| - |\n| b |\n\nA note.\n"


@pytest.mark.parametrize(
    ("figure", "reached"),
    [
        (report.below("it", 0.5, 1.0), "reached"),
        (report.below("it", 1.0, 1.0), "missed"),
        (report.above("it", 3.5, 3.0), "reached"),
        (report.above("it", 3.0, 3.0), "missed"),
    ],
)
def test_figures_are_judged(figure: report.Figure, reached: str) -> None:
    (row,) = report.figures_table([figure]).rows
    assert row[-1] == reached
