"""`worker-agent audit`: looking at the audit trails, whether the agent runs or not."""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import click

from jobworker import chain, program, units
from jobworker.chain import Head
from jobworker.cli import audit_verify
from jobworker.cli.audit_verify import Report
from jobworker.cli.progress import progress
from jobworker.errors import InvalidField
from jobworker.printable import inline

_BROKEN, _TOLD, _NOT_CHECKED = 1, 3, 4
_ANCHOR = re.compile(rf"({'|'.join(chain.TRAILS)}):(.*)")

_VERIFY = """\
Check that no line of the audit trails was changed, dropped, inserted or moved.

Each line holds the SHA-256 over the one before it and itself, so whoever changes one has to change all that
follow. What comes out is the head of each trail, the number and hash of its last line. The agent puts such
heads into its log now and then ("audit anchor"); keep that log elsewhere, and give anchors from there:

\b
  worker-agent audit verify --state-dir /var/lib/jobworker
  worker-agent audit verify --state-dir /var/lib/jobworker --anchor jobs:1234:5f70…
  journalctl -o cat -u jobworker-keeper | grep -o '"anchor": "[^"]*"'

Without an anchor from elsewhere it can't be known whether root has cut off the end, with the noted head, or
written the whole trail anew. An anchor of lines that were removed for their age says nothing any more.

\b
Exit codes:
  0  whole
  1  something was changed, dropped, inserted or moved; each finding names file and line
  3  the chain holds, and the trail itself tells of lines that could not be written
  4  it could not be checked: no such directory, not root, no trail
"""

_SHOW = """\
Print lines of the audit trails, the oldest first: as text, or as they are with --format json.

Nothing is verified by this; `worker-agent audit verify` does that.

\b
Examples:
  worker-agent audit show --state-dir /var/lib/jobworker --since 1h
  worker-agent audit show --state-dir /var/lib/jobworker --job k7f3 --format json
  worker-agent audit show --state-dir /var/lib/jobworker --denied --principal '*/user/alice'
"""

_state_dir = click.option(
    "--state-dir",
    required=True,
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="The agent's state directory.",
)


@click.group(short_help="Check and read the audit trails.")
def audit() -> None:
    """Check and read the audit trails: who asked for what, and what was done."""


@audit.command(help=_VERIFY, short_help="Check that nobody has changed the audit trails.")
@_state_dir
@click.option(
    "--anchor", "anchors", multiple=True, metavar="TRAIL:SEQ:HASH", help="A head that was seen elsewhere."
)
@click.option("--all", "everything", is_flag=True, help="Print every finding, not the first twenty of a trail.")
def verify(state_dir: str, anchors: tuple[str, ...], *, everything: bool) -> None:
    known = [_parse_anchor(text) for text in anchors]
    directory = _directory(state_dir)
    most = sys.maxsize if everything else 20
    try:
        with progress() as line:
            reports = [
                audit_verify.Verifier(
                    directory, name, tuple(head for trail, head in known if trail == name), most
                ).run(line.show)
                for name in chain.TRAILS
            ]
    except OSError as error:
        _not_checked(f"{error.filename or directory}: {error.strerror}")
    for report in reports:
        _tell(report, anchored=any(trail == report.name for trail, _ in known))
    if any(report.broken for report in reports):
        sys.exit(_BROKEN)
    if not any(report.lines for report in reports):
        _not_checked(f"there is no trail in {directory}")
    if any(report.told for report in reports):
        sys.exit(_TOLD)


def _parse_anchor(text: str) -> tuple[str, Head]:
    match = _ANCHOR.fullmatch(text)
    head = chain.parse_head(match[2]) if match else None
    if match is None or head is None or head.seq == 0:
        example = f"jobs:1234:{'5f70' * 16}"
        raise click.BadParameter(
            f"{text!r:.100} is not TRAIL:SEQ:HASH; for example {example}", param_hint="--anchor"
        )
    return match[1], head


def _directory(state_dir: str) -> str:
    path = os.path.join(state_dir, chain.DIRECTORY)
    try:
        os.listdir(path)
    except OSError as error:
        _not_checked(f"{path}: {error.strerror}")
    return path


def _not_checked(problem: str) -> NoReturn:
    program.complain("worker-agent", problem)
    sys.exit(_NOT_CHECKED)


def _tell(report: Report, *, anchored: bool) -> None:
    for finding in report.findings:
        place = f"{finding.file}, line {finding.line}: " if finding.file else ""
        click.echo(inline(f"{report.name}: {'note: ' if finding.told else ''}{place}{finding.problem}"))
    if report.more:
        click.echo(f"{report.name}: {report.more} more; --all prints them")
    if not report.lines:
        click.echo(f"{report.name}: no line")
        return
    verdict = "BROKEN" if report.broken else "whole, but it tells of missing lines" if report.told else "whole"
    span = f"lines {report.first} to {report.head.seq}, in {report.files} files, since {report.since}"
    click.echo(inline(f"{report.name}: {verdict}: {span}"))
    if report.first > 1:
        click.echo(f"{report.name}: lines 1 to {report.first - 1} are not here to be checked")
    for seq in report.stale:
        click.echo(f"{report.name}: the anchor of line {seq} says nothing: that line is not here any more")
    if not anchored:
        click.echo(
            f"{report.name}: without an anchor from elsewhere: nobody knows of lines after the last one here"
        )
    click.echo(f"{report.name}: head {report.name}:{report.head}")


@audit.command(help=_SHOW, short_help="Print lines of the audit trails.")
@_state_dir
@click.option("--trail", type=click.Choice(chain.TRAILS), help="One of them alone.")
@click.option("--principal", metavar="URI", help="Of or about jobs of this one; * stands for any characters.")
@click.option("--job", metavar="ID", help="About this job; the beginning of its id will do.")
@click.option("--event", metavar="NAME", help="Of this kind, job_started say.")
@click.option("--denied", is_flag=True, help="Calls that were refused.")
@click.option("--since", metavar="WHEN", help="From this time on: 2026-01-31T08:00:00Z, or 2h for two hours ago.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def show(
    state_dir: str,
    trail: str | None,
    principal: str | None,
    job: str | None,
    event: str | None,
    since: str | None,
    form: str,
    *,
    denied: bool,
) -> None:
    pattern = _pattern(principal)
    beginning = _when(since) if since else ""
    directory = _directory(state_dir)
    with contextlib.ExitStack() as files:
        trails = [_said(directory, name, files) for name in ([trail] if trail else chain.TRAILS)]
        for said, line in heapq.merge(*trails, key=lambda each: str(each[0].get("time"))):
            if (
                str(said.get("time")) >= beginning
                and (not job or str(said.get("job", "")).startswith(job))
                and (not event or said.get("event") == event)
                and (not denied or said.get("decision") == "deny" or str(said.get("event")).endswith("_refused"))
                and (not pattern or pattern.fullmatch(_principal(said)))
            ):
                click.echo(line if form == "json" else _text(said))


def _pattern(principal: str | None) -> re.Pattern[str] | None:
    return re.compile(".*".join(map(re.escape, principal.split("*")))) if principal else None


def _when(text: str) -> str:
    """A time as the lines have it."""
    try:
        return _read_time(text)
    except OverflowError:
        problem = f"{text!r:.60} is before the year 1, or behind the year 9999"
        raise click.BadParameter(problem, param_hint="--since") from None


def _read_time(text: str) -> str:
    with contextlib.suppress(InvalidField):
        return _stamp(datetime.now(UTC) - timedelta(milliseconds=units.parse_duration(text, "--since")))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        problem = f"{text!r:.60} is neither a time nor a duration; for example 2026-01-31T08:00:00Z, or 2h"
        raise click.BadParameter(problem, param_hint="--since") from None
    if moment.tzinfo is None:
        # The lines are in UTC, and who looks at them may be anywhere.
        raise click.BadParameter(f"{text!r:.60} has no time zone; for example {text:.60}Z", param_hint="--since")
    return _stamp(moment)


def _stamp(moment: datetime) -> str:
    # Not by strftime, which writes the year 800 with three digits.
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")


def _said(directory: str, name: str, files: contextlib.ExitStack) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        for _, file in audit_verify.open_all(directory, name, files):
            for data in file:
                with contextlib.suppress(ValueError, RecursionError):
                    said = json.loads(data)
                    if isinstance(said, dict):
                        yield said, data.decode("ascii", "replace").rstrip("\n")
    except OSError as error:
        _not_checked(f"{error.filename or directory}: {error.strerror}")


def _claimed(said: dict[str, Any]) -> dict[str, Any]:
    claimed = said.get("claimed")
    return claimed if isinstance(claimed, dict) else {}


def _principal(said: dict[str, Any]) -> str:
    return str(said.get("principal") or _claimed(said).get("principal") or said.get("started_by") or "")


_NOT_REPEATED = frozenset({"seq", "hash", "time", "by", "event", "claimed", "principal", "at"})


def _text(said: dict[str, Any]) -> str:
    """One line for a person; nothing in it can make two of it, or move a terminal's cursor."""
    parts = [str(said.get("time")), str(said.get("by")), str(said.get("event")), _principal(said) or "-"]
    parts += [
        f"{name}={json.dumps(value)}"
        for name, value in (said | {f"claimed.{name}": value for name, value in _claimed(said).items()}).items()
        if name not in _NOT_REPEATED and name != "claimed.principal"
    ]
    return "  ".join(part if part.isprintable() else json.dumps(part) for part in parts)
