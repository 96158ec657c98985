"""Nothing that a job writes may take over the terminal it is shown on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobworker.cli.terminal import TerminalFilter
from jobworker.printable import inline
from jobworker.program import complain

# A busy machine is no failure.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Bytes that make up control sequences, dense enough for them to come about by chance.
HOSTILE = st.lists(
    st.sampled_from(
        [b"\x1b", b"[", b"]", b"0", b";", b"m", b"\x9b", b"\xc2", b"\x07", b"\\", b"\xe2\x82\xac", b"a"]
    )
    | st.binary(max_size=3)
).map(b"".join)


def shown(*pieces: bytes) -> bytes:
    filter_ = TerminalFilter()
    return b"".join([filter_.feed(piece) for piece in pieces] + [filter_.finish()])


@UNHURRIED
@given(HOSTILE)
def test_no_control_sequence_but_colours_gets_through(data: bytes) -> None:
    text = shown(data).decode()
    assert not CONTROL.search(COLOUR.sub("", text))


@UNHURRIED
@given(HOSTILE, st.lists(st.integers(0, 60)))
def test_it_does_not_matter_how_the_output_is_cut(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), max([len(data), *cuts])]
    assert shown(*(data[a:b] for a, b in pairwise(edges))) == shown(data)


@UNHURRIED
@given(st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from("\n\t\r")))
def test_plain_text_is_unchanged(text: str) -> None:
    assert shown(text.encode()) == text.encode()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x1b]0;title\x07", rb"\x1b]0;title\x07"),
        (b"\x1b[2J", rb"\x1b[2J"),
        (b"\x1b[31mred\x1b[m", b"\x1b[31mred\x1b[m\x1b[0m"),
        (b"\x1b[38:2::1:2:3mx", b"\x1b[38:2::1:2:3mx\x1b[0m"),
        (b"\x1b[?1m", rb"\x1b[?1m"),
        (b"\x1b[" + b"1" * 65 + b"m", rb"\x1b[" + b"1" * 65 + b"m"),
        (b"\xc2\x9b2J", rb"\x9b2J"),
        (b"\x9b2J", rb"\x9b2J"),
        (b"\xff\xfe", rb"\xff\xfe"),
        (b"half \xe2\x82", rb"half \xe2\x82"),
        (b"half \x1b[3", rb"half \x1b[3"),
        (b"a\x08b\x00c\x7f", rb"a\x08b\x00c\x7f"),
    ],
)
def test_what_is_written_out(data: bytes, told: bytes) -> None:
    assert shown(data) == told


def test_output_is_not_held_back_longer_than_it_must() -> None:
    filter_ = TerminalFilter()
    assert filter_.feed(b"prompt> ") == b"prompt> "
    assert filter_.feed(b"\x1b[3") == b""
    assert filter_.feed(b"1m") == b"\x1b[31m"
    assert filter_.feed(b"\xe2\x82") == b""
    assert filter_.feed(b"\xac") == "€".encode()


@UNHURRIED
@given(st.text())
def test_text_within_a_line_stays_on_its_line_and_prints(text: str) -> None:
    assert inline(text).isprintable()


def test_text_within_a_line_is_written_out_readably() -> None:
    assert inline("a\nb\x1b[0m\u202e\udcff€") == r"a\nb\x1b[0m\u202e\udcff€"


def test_a_complaint_quotes_others_without_their_control_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    complain("worker-pki", "asks for DNS:\x1b[2K\x1b]0;pwned\x07ok.example.org\nb: wrong")
    shown = "worker-pki: asks for DNS:\\x1b[2K\\x1b]0;pwned\\x07ok.example.org\nb: wrong\n"
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize("words", [["nonsense"], ["list", "--nonsense"]])
def test_the_exit_code_stands_where_nobody_takes_the_complaint(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        program = "from jobworker.cli.worker_client import main; main()"
        done = subprocess.run([sys.executable, "-c", program, *words], stderr=full, check=False)
    assert done.returncode == 2


def test_what_the_locale_has_no_characters_for_is_written_out() -> None:
    program = "from jobworker import program; program.open_standard_streams(); print('long\\u2026', '\\udcff')"
    environment = os.environ | {"PYTHONIOENCODING": "latin1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout == b"long\\u2026 \\udcff\n"


def test_a_file_of_rules_says_nothing_to_the_terminal_itself(tmp_path: Path) -> None:
    rules = tmp_path / "policy.yaml"
    rules.write_text('version: 1\n"a\\e]0;pwned\\a": 1\n')
    program = "from jobworker.cli.worker_agent import main; main()"
    command = [sys.executable, "-c", program, "policy", "check", str(rules)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (r"\x1b]0;pwned\x07" in done.stderr, "\x1b" in done.stderr) == (True, False)
