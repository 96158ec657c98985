"""Findings as `doctor` commands print them."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

from jobworker.findings import Finding, Level
from jobworker.printable import inline

# As wide as the longest.
_CHECK_WIDTH = 11


def show(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print each finding as it is made; the exit code: 1 if one says that something does not work."""
    failed = False
    for finding in findings:
        failed = failed or finding.level is Level.FAIL
        click.echo(_json(finding) if as_json else _text(finding))
    return int(failed)


def _text(finding: Finding) -> str:
    hint = f"; {finding.hint}" if finding.hint else ""
    first, *others = [inline(line) for line in f"{finding.told}{hint}".splitlines()]
    head = f"{finding.level.value:<4}  {finding.check:<{_CHECK_WIDTH}}  "
    return "\n".join([f"{head}{first}", *(f"{'':<{len(head)}}{line}" for line in others)])


def _json(finding: Finding) -> str:
    plain = {
        "check": finding.check,
        "level": finding.level.value.lower(),
        "told": finding.told,
        "hint": finding.hint,
    }
    return json.dumps(plain, separators=(",", ":"))
