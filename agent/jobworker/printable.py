"""Text of others, made fit to stand in a line."""

from __future__ import annotations


def inline(text: str) -> str:
    """Text of others as part of a line: whatever does not print is written out, line breaks included."""
    return "".join(char if char.isprintable() else written_out(char) for char in text)


def written_out(char: str) -> str:
    return char.encode("unicode_escape").decode()
