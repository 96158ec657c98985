"""How it went on each host, and on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from jobworker.cli.fleet.targets import some
from jobworker.client.failures import CallFailed, NothingMatches
from jobworker.errors import JobNotFound, JobWorkerError, TlsProblem
from jobworker.program import INTERRUPTED

FAILED, UNREACHABLE = 1, 3

_NO_ANSWER = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


class Status(StrEnum):
    """What became of a host, as the summary calls it; in the order in which that tells them."""

    OK = "ok"
    WITHOUT = "without such a job"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    LEFT = "left before the end"
    NOT_BEGUN = "not begun"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went on one host.

    Attributes:
        host: as the inventory names it.
        reason: in a word or two, by which hosts are gathered: `EXITED 3`, `PERMISSION_DENIED`; empty for none.
        detail: the sentence to it; empty for none.
    """

    host: str
    status: Status
    reason: str = ""
    detail: str = ""

    def plain(self) -> dict[str, str]:
        """As an object of JSON, the last one of the host's."""
        told = {"status": self.status.name, "reason": self.reason, "detail": self.detail}
        return {"host": self.host, "type": "result", **told}


def of_error(host: str, error: Exception) -> Outcome:
    """What an error says of a host, also one that nobody has foreseen."""
    match error:
        # Of a beginning of an id it is known here, of a whole one the agent says so.
        case JobNotFound() | NothingMatches() | CallFailed(reason="JOB_NOT_FOUND"):
            return Outcome(host, Status.WITHOUT, detail=str(error))
        case TlsProblem():
            return Outcome(host, Status.UNREACHABLE, detail=str(error))
        # Who gives a reason has answered.
        case CallFailed(code=code, reason="") if code in _NO_ANSWER:
            return Outcome(host, Status.UNREACHABLE, detail=str(error))
        case CallFailed(code=code, reason=reason):
            return Outcome(host, Status.FAILED, reason or code, str(error))
        case _:
            return Outcome(host, Status.FAILED, type(error).__name__, str(error))


def of_lost(host: str, error: JobWorkerError) -> Outcome:
    """What an error says of a host that had been reached before.

    What was asked of it may be done: who is told that a host was not reached starts the same there once more.
    """
    outcome = of_error(host, error)
    lost = outcome.status is Status.UNREACHABLE
    return replace(outcome, status=Status.FAILED, reason="connection lost") if lost else outcome


def summary(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """What came of all hosts: a line of numbers, then the hosts of each kind that is not well."""
    kinds = dict[tuple[Status, str], list[str]]()
    for outcome in outcomes:
        kinds.setdefault((outcome.status, outcome.reason), []).append(outcome.host)
    counts = _counts(kinds)
    told = ", ".join(f"{counts[status]} {status}" for status in Status if status in counts)
    yield f"{hosts_text(sum(counts.values()))}: {told}"
    for (status, reason), hosts in sorted(kinds.items(), key=_by_status):
        if status not in (Status.OK, Status.WITHOUT):
            yield f"  {status}{f', {reason}' if reason else ''}: {some(hosts)}"


def exit_code(outcomes: Iterable[Outcome], *, interrupted: bool) -> int:
    """The exit code that tells the worst of it."""
    found = {outcome.status for outcome in outcomes}
    if interrupted:
        return INTERRUPTED
    if Status.FAILED in found or found == {Status.WITHOUT}:
        return FAILED
    if Status.UNREACHABLE in found:
        return UNREACHABLE
    return FAILED if found & {Status.LEFT, Status.NOT_BEGUN} else 0


def _counts(kinds: Mapping[tuple[Status, str], list[str]]) -> dict[Status, int]:
    counts = dict[Status, int]()
    for (status, _), hosts in kinds.items():
        counts[status] = counts.get(status, 0) + len(hosts)
    return counts


def _by_status(kind: tuple[tuple[Status, str], list[str]]) -> tuple[int, str]:
    (status, reason), _ = kind
    return list(Status).index(status), reason


def hosts_text(count: int) -> str:
    """So many hosts, in words."""
    return "1 host" if count == 1 else f"{count} hosts"
