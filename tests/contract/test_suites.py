"""What the machines of each kind run: no test of the root side is lost from it when a file is split or renamed."""

from __future__ import annotations

from pathlib import Path

from vm.test_suites import LEFT_OUT, SUITES

ROOT = Path(__file__).parents[2]
RUN = {word for words in SUITES.values() for word in words}


def test_tests_of_the_root_side_run_in_the_machines_or_say_why_not() -> None:
    files = (ROOT / "tests" / "security").glob("test_*.py")
    marked = {str(path.relative_to(ROOT)) for path in files if "pytest.mark.root" in path.read_text()}
    assert marked - RUN == LEFT_OUT.keys()


def test_what_the_machines_run_is_there() -> None:
    named = [word for word in RUN if word.startswith("tests/")]
    assert [word for word in named if not (ROOT / word).exists()] == []
