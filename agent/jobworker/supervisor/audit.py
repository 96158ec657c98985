"""What goes into the audit trails: `jobs`, what root did and saw, and `calls`, what others asked of it.

Two trails, so that whoever floods the agent with calls, a gateway that was taken over included, makes nothing of
what was executed go before its time. A line says who wrote it, and that is decided here and by nobody else: what
the gateway reports is its own, and who a call came from is `claimed` by it. Values of environments are never told.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import jobworker
from jobworker import chain
from jobworker.budget import Budget
from jobworker.errors import HostFault, InvalidField, JobWorkerError
from jobworker.jobs import EndReason, JobRecord, JobSpec
from jobworker.limits import LimitStatus
from jobworker.settings.schema import AuditSettings
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop, Timer
from jobworker.supervisor.trail import Trail, body
from jobworker.wire.callers import Caller, CallReport
from jobworker.wire.messages import (
    DeleteJob,
    Drain,
    ReportCalls,
    SignalJob,
    StartJob,
    StopJob,
    UpdateJob,
    WriteStdin,
)

# How far the end of a trail can be cut off and found missing by nobody who has seen the anchor before.
_ANCHOR_LINES, _ANCHOR_SECONDS = 1_000, 60.0
_AGAIN = 1.0
# Of what others ask: lines a second, and what may come at once.
_CALLS_RATE, _CALLS_BURST = 1_000.0, 4_000.0
_MAX_TEXT, _MAX_PATH, _MAX_LIST = 400, 4_096, 8_192


class Audit:
    """Writes the trails, all lines of a round at its end; never blocks and never fails.

    Args:
        directory: opens the directory of the trails, or makes it.
        lost: lines of each trail that the program before this one, in the same process, could not write.
        to_disk: called with the name of a file that has changed.
        budget: for lines of the trail `calls`; by default what a host can bear.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        settings: AuditSettings,
        directory: Callable[[], int],
        lost: tuple[int, ...],
        to_disk: Callable[[str], None],
        budget: Budget | None = None,
    ) -> None:
        self._loop = loop
        self._log = log
        self._required = settings.required
        self._jobs, self._calls = self._trails = tuple(
            Trail(log, name, directory, settings.max_bytes, settings.keep, gone, to_disk)
            for name, gone in zip(chain.TRAILS, lost, strict=True)
        )
        self._anchored = dict.fromkeys(chain.TRAILS, 0)
        self._anchor_timer: Timer | None = None
        self._retry: Timer | None = None
        self._budget = budget or Budget(_CALLS_RATE, _CALLS_BURST)
        # By the gateway's word, and by our own.
        self._dropped = 0
        self._over = 0
        self._written_ns: int | None = None
        loop.after_each_round(self.flush)

    # Writing.

    def flush(self) -> None:
        """Write what has come in; what can't be written is tried again later."""
        if self._retry and self._retry.pending:
            return
        if [trail for trail in self._trails if not trail.flush()]:
            self._retry = self._loop.call_after(_AGAIN, self.flush)
        self._anchor_if_due()

    def _anchor_if_due(self) -> None:
        ahead = max(trail.head.seq - self._anchored[trail.name] for trail in self._trails)
        if ahead >= _ANCHOR_LINES or any(trail.rotated for trail in self._trails):
            self.anchor()
        elif ahead and not (self._anchor_timer and self._anchor_timer.pending):
            self._anchor_timer = self._loop.call_after(_ANCHOR_SECONDS, self.anchor)

    def anchor(self) -> None:
        """Say outside what the trails go up to, for who compares."""
        for trail in self._trails:
            trail.rotated = False
            if not trail.failing and trail.head.seq != self._anchored[trail.name]:
                self._anchored[trail.name] = trail.head.seq
                self._log.always("audit anchor", anchor=f"{trail.name}:{trail.head}")
                trail.write_head()

    def _note(self, event: str, **fields: Any) -> None:
        self._jobs.add(body("supervisor", event, **fields))

    # The agent itself.

    def begin(self) -> None:
        """Go on with the trails of earlier lives. The state directory must be this process's own by now."""
        for trail in self._trails:
            trail.add(body("supervisor", "agent_started", version=jobworker.__version__, pid=os.getpid()))
        self.flush()

    def end(self, why: str) -> tuple[int, ...]:
        """Write the last lines of this program; how many of each trail could not be written."""
        self._note("agent_ending", why=why)
        for trail in self._trails:
            trail.flush()
        self.anchor()
        return tuple(trail.unwritten for trail in self._trails)

    def owner_asked(self, what: str) -> None:
        self._note("owner_asked", what=what)

    # Starts.

    def start_asked(self, request: StartJob) -> None:
        """Put a start on record before it is made, where the settings want that.

        Raises:
            HostFault: it can't be.
        """
        if not self._required:
            return
        self._note("start_asked", **_command(request.spec), claimed=_claimed(request.caller))
        if not self._jobs.flush():
            problem = "no job is started without being put on record, by the setting audit.required"
            raise HostFault("writing the audit trail", self._jobs.failing, problem)

    def start_refused(self, request: StartJob, error: JobWorkerError) -> None:
        fields = {**_dry(request), **_command(request.spec), **_problem(error)}
        self._note_call("start_refused", decision="deny", **fields, claimed=_claimed(request.caller))

    def start_repeated(self, request: StartJob, job_id: str) -> None:
        fields = {"job": job_id, **_dry(request)}
        self._note_call("start_repeated", decision="allow", **fields, claimed=_claimed(request.caller))

    def start_planned(self, request: StartJob, rule: str) -> None:
        fields = {"rule": _clip(rule), **_dry(request), **_command(request.spec)}
        self._note_call("start_planned", decision="allow", **fields, claimed=_claimed(request.caller))

    def started(self, caller: Caller, record: JobRecord) -> None:
        self._note("job_started", decision="allow", **_job(record), claimed=_claimed(caller))

    def start_failed(self, caller: Caller, record: JobRecord, error: JobWorkerError) -> None:
        # Nothing was executed, and it can be had any number of times; where it was announced, this is the answer.
        note = self._note if self._required else self._note_call
        note("start_failed", decision="allow", **_job(record), **_problem(error), claimed=_claimed(caller))

    # The life of a job.

    def stop_asked(self, request: StopJob, *, again: bool) -> None:
        # What changes nothing is a call like others: it can be made any number of times.
        note = self._note_call if again and not request.force else self._note
        fields = {"job": request.job_id, "grace_ms": request.grace_ms, "force": request.force or None}
        note(
            "stop_asked",
            decision="allow",
            **fields,
            signal=_name(request.signal),
            claimed=_claimed(request.caller),
        )

    def signalled(self, request: SignalJob) -> None:
        everyone = request.everyone or None
        fields = {"job": request.job_id, "signal": _name(request.signal), "everyone": everyone}
        self._note_call("job_signalled", decision="allow", **fields, claimed=_claimed(request.caller))

    def stdin_written(self, request: WriteStdin, begins: int) -> None:
        """Somebody has begun to write to a job's standard input; how much, the next line of that job tells."""
        fields = {"job": request.job_id, "offset": begins}
        self._note_call("stdin_written", decision="allow", **fields, claimed=_claimed(request.caller))

    def stdin_ended(self, record: JobRecord, taken: int, why: str) -> None:
        self._note("stdin_ended", job=record.job_id, bytes=taken, why=why)

    def updated(self, request: UpdateJob, before: tuple[LimitStatus, ...], after: tuple[LimitStatus, ...]) -> None:
        had = {status.name: status.value for status in before}
        has = {status.name: status.value for status in after}
        asked = [name for name, _ in request.limits.given()]
        fields = {
            "job": request.job_id,
            "before": {name: had[name] for name in asked if name in had},
            "after": {name: has[name] for name in asked},
            "force": request.force or None,
        }
        self._note_call("limits_updated", decision="allow", **fields, claimed=_claimed(request.caller))

    def delete_asked(self, request: DeleteJob) -> None:
        self._note("delete_asked", decision="allow", job=request.job_id, claimed=_claimed(request.caller))

    def drained(self, request: Drain) -> None:
        event = "drained" if request.draining else "undrained"
        self._note_call(event, decision="allow", claimed=_claimed(request.caller))

    def refused(self, what: str, caller: Caller, job_id: str, error: JobWorkerError) -> None:
        """A request that changes something, and was not carried out."""
        fields = {"job": _clip(job_id) or None, **_problem(error)}
        self._note_call(f"{what}_refused", decision="deny", **fields, claimed=_claimed(caller))

    def stopping(self, record: JobRecord, why: EndReason) -> None:
        self._note("job_stopping", job=record.job_id, why=why.value)

    def stuck(self, record: JobRecord) -> None:
        self._note("job_stuck", job=record.job_id)

    def ended(self, record: JobRecord, **more: Any) -> None:
        lost = record.end_reason is EndReason.LOST
        self._note(
            "job_lost" if lost else "job_ended",
            job=record.job_id,
            reason=record.end_reason.value if record.end_reason else None,
            exit_code=record.exit_code,
            signal=_name(record.signal) if record.signal else None,
            detail=_clip(record.detail),
            started_by=_clip(record.principal),
            ended=chain.stamp(record.ended_ns),
            **more,
        )

    def removed(self, job_id: str) -> None:
        self._note("job_removed", job=job_id)

    # What an earlier life has left.

    def taken_over(self, record: JobRecord) -> None:
        """A job runs on that an earlier life started, which may not have come to put that on record."""
        if self._missed(record.started_ns or record.created_ns):
            self._note("job_started", **_job(record), started_by=_clip(record.principal), late=True)

    def found_ended(self, record: JobRecord) -> None:
        if self._missed(record.ended_ns):
            self.ended(record, late=True)

    def undone(self, job_id: str) -> None:
        self._note("start_undone", job=job_id)

    def quarantined(self, name: str, problem: str) -> None:
        self._note("job_quarantined", job=_clip(name), problem=_clip(problem))

    def _missed(self, ns: int) -> bool:
        """True if an earlier life did not write what happened then: nothing of its last line is older."""
        if not self._jobs.ended:
            return False
        if self._written_ns is None:
            self._written_ns = chain.floor_ns(self._jobs.ended)
        # Of ten thousand jobs nearly all ended long before.
        return ns >= self._written_ns and chain.stamp(ns) > self._jobs.ended

    # Calls.

    def reported(self, message: ReportCalls) -> None:
        """What the gateway says of calls."""
        for call in message.calls:
            if self._has_room():
                self._calls.add(_call(call))
        self._dropped += max(0, message.dropped)
        if self._dropped and self._has_room():
            self._tell_gateway_dropped()

    def connected(self, uid: int, **fields: Any) -> None:
        self._note_call("connected", uid=uid, **fields)

    def connection_refused(self, uid: int) -> None:
        self._note_call("connection_refused", uid=uid)

    def request_refused(self, name: str, error: JobWorkerError) -> None:
        """Somebody asked for what is not theirs to ask, or not then: not what a gateway of ours does."""
        self._note_call("request_refused", decision="deny", request=name, **_problem(error))

    def protocol_error(self, problem: str) -> None:
        self._note_call("protocol_error", problem=_clip(problem))

    def _note_call(self, event: str, **fields: Any) -> None:
        if self._has_room():
            self._calls.add(body("supervisor", event, **fields))

    def _has_room(self) -> bool:
        """Bounds what anyone who can make the supervisor write a line can make it write."""
        if self._budget.take():
            return True
        if not self._over:
            self._loop.call_after(_AGAIN, self._tell_dropped)
        self._over += 1
        return False

    def _tell_gateway_dropped(self) -> None:
        self._calls.add(body("gateway", "calls_dropped", lines=self._dropped))
        self._dropped = 0

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._tell_gateway_dropped()
        self._calls.add(body("supervisor", "calls_dropped", lines=self._over))
        self._over = 0


def _clip(text: str, most: int = _MAX_TEXT) -> str:
    """Text that takes no more than this in a line, where what is not ASCII takes six bytes and more."""
    kept = text[:most]
    while (size := len(json.dumps(kept)) - 2) > most:
        kept = kept[: len(kept) * most // size]
    return kept if kept == text else f"{kept}…"


def _claimed(caller: Caller) -> dict[str, str]:
    role = caller.role.value if caller.role else ""
    said = {
        "principal": caller.principal,
        "role": role,
        "serial": caller.serial,
        "peer": caller.peer,
        "call": caller.call,
        "request": caller.request,
    }
    return {name: _clip(value) for name, value in said.items() if value}


def _call(report: CallReport) -> bytes:
    fields = {
        "at": chain.stamp(report.at_ns),
        "decision": "allow" if report.allowed else "deny",
        "rpc": _clip(report.rpc),
        "code": _clip(report.code),
        "reason": _clip(report.reason),
        "detail": _clip(report.detail),
        "job": _clip(report.job_id),
        "took_ms": report.took_ms,
        **_claimed(report.caller),
    }
    # The name of the event is the gateway's, and one of two.
    event = "stream_opened" if report.event == "stream_opened" else "call"
    return body("gateway", event, **fields)


def _problem(error: JobWorkerError) -> dict[str, str]:
    # Of a field that is wrong the name only: the text may quote what was asked for.
    said = error.field if isinstance(error, InvalidField) else str(error)
    return {"problem": type(error).__name__, "detail": _clip(said)}


def _job(record: JobRecord) -> dict[str, Any]:
    return {
        "job": record.job_id,
        "command": _clip(record.command, _MAX_PATH),
        **_listed("args", record.args),
        **_listed("env", record.env_names),
        "workdir": _clip(record.workdir, _MAX_PATH),
        "uid": record.uid,
        "pid": record.pid or None,
        "sandbox": record.sandbox.profile,
        "profile": record.profile,
    }


def _dry(request: StartJob) -> dict[str, bool]:
    return {"dry_run": True} if request.dry_run else {}


def _command(spec: JobSpec) -> dict[str, Any]:
    names = tuple(name for name, _ in spec.env)
    return {
        "command": _clip(spec.command, _MAX_PATH),
        **_listed("args", spec.args),
        **_listed("env", names),
        "sandbox": _clip(spec.sandbox),
        **({"stdin_bytes": len(spec.stdin)} if spec.stdin else {}),
        **({"stdin_open": True} if spec.stdin_open else {}),
        **({"merge_stderr": True} if spec.merge_stderr else {}),
        "profile": _clip(spec.profile),
    }


def _listed(name: str, items: tuple[str, ...]) -> dict[str, Any]:
    """Items that fit a line; if some do not, how many there are and the SHA-256 of all, a NUL between them."""
    kept: list[str] = []
    room = _MAX_LIST
    for item in items:
        room -= len(json.dumps(item))
        if room < 0:
            digest = chain.fingerprint(_encoded("\0".join(items)))
            return {name: kept, f"{name}_cut": {"of": len(items), "sha256": digest}}
        kept.append(item)
    return {name: kept} if kept else {}


def _encoded(text: str) -> bytes:
    """As a program is given it; what none can be given, and a start is refused for, as UTF-8 would have it."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)
