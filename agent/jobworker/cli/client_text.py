"""Jobs and agents as text for people.

Much of that text comes from others: it goes through `inline`, so that nobody's job takes over the terminal.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jobworker.cli import client_json
from jobworker.findings import by_reason
from jobworker.printable import inline

if TYPE_CHECKING:
    from jobworker.api.v1.job_pb2 import Job, LimitStatus, Usage
    from jobworker.api.v1.job_worker_service_pb2 import (
        GetAgentInfoResponse,
        LimitProfile,
        LimitSupport,
        ReloadResponse,
        StartResponse,
    )

Pairs = Iterable[tuple[str, str]]

_COMMAND_WIDTH = 60
_AGES = ((86_400, "d"), (3_600, "h"), (60, "m"))
_SIZES = ((1024**4, "T"), (1024**3, "G"), (1024**2, "M"), (1024, "K"))


def job(message: Job, now: float) -> str:
    """Everything known of a job as labelled lines; what there is nothing to say of is left out.

    Args:
        message: the job.
        now: Unix time in seconds.
    """
    return labelled(
        (*_what(message), *_life(message, now), *_sandbox(message), *_limits(message), *_output(message))
    )


def plan(message: StartResponse) -> str:
    """What a start would make, as labelled lines."""
    job, rule = message.job, ("allowed by", f"rule {message.rule}")
    if job.id:
        return labelled((("started before", f"{job.id}, {status(job)}"), ("command", command(job)), rule))
    return labelled(
        (
            ("would start", command(job)),
            rule,
            ("directory", job.workdir or "a fresh one of its own"),
            *_given(job),
            ("user", _user(job)),
            ("timeout", _timeout(job)),
            *_sandbox(job),
            ("profile", job.profile),
            *_under("limits", [_limit(limit) for limit in job.limits]),
        )
    )


def plan_line(message: StartResponse) -> str:
    """The same in a line, to compare agents by."""
    job = message.job
    limits = ", ".join(_limit(limit) for limit in job.limits) or "no limits"
    what = f"started before: {job.id}, {status(job)}" if job.id else f"would start, {limits}"
    return f"{inline(what)}; allowed by rule {inline(message.rule)}"


def _user(message: Job) -> str:
    if message.user:
        return f"{message.user} ({message.uid})"
    return f"the agent's ({message.uid})" if message.uid else "one of its own"


def table(jobs: Iterable[Job], now: float) -> str:
    """One line for each job."""
    rows = [("ID", "STATE", "AGE", "BY", "COMMAND")]
    rows += [
        (
            each.id,
            status(each),
            age(now - each.created_at.seconds),
            each.principal.rpartition("/")[2],
            cut(command(each)),
        )
        for each in jobs
    ]
    return aligned(rows)


def agent(message: GetAgentInfoResponse) -> str:
    jobs = f"{message.active_jobs} active, at most {message.max_active_jobs}"
    users = "a user of its own for each job" if message.user_per_job else "all jobs share the agent's user"
    lacking = [part for part in message.sandbox_parts if part.missing_because]
    lines = (
        ("agent", versions(message)),
        ("host", f"{message.hostname}, Linux {message.kernel}"),
        ("capacity", f"{message.cpus} CPUs, {size(message.memory_bytes)} memory"),
        ("jobs", jobs),
        ("draining", "takes no new jobs" if message.draining else ""),
        ("users", users),
        ("cgroups", message.cgroup_mode),
        ("sandbox", message.default_sandbox),
        *_under("no sandbox", by_reason((part.missing_because, part.name) for part in lacking)),
        *_under("limits", [_support(limit) for limit in message.limits if not lacks(limit)]),
        *_under("no limits", by_reason((limit.detail, limit.name) for limit in message.limits if lacks(limit))),
        *_under("profiles", [_profile(profile) for profile in message.limit_profiles]),
        ("certificate", f"until {client_json.time(message, 'certificate_expires_at') or 'not told'}"),
        ("revoked", f"list until {told}" if (told := client_json.time(message, "crl_expires_at")) else ""),
        *_under(
            "not in force",
            [line for stale in message.stale_files for line in f"{stale.what}: {stale.problem}".splitlines()],
        ),
    )
    return labelled(lines)


def versions(message: GetAgentInfoResponse) -> str:
    """The agent's version; of a half-upgraded one, those of both halves."""
    # One of before this field has none.
    if message.supervisor_version in ("", message.version):
        return message.version
    return f"{message.version}, its supervisor {message.supervisor_version}"


def reloaded(message: ReloadResponse) -> str:
    stale = client_json.stale_files(message)
    return labelled([pair for what in message.read for pair in _under(what, in_force(stale.get(what, "")))])


def in_force(problem: str) -> list[str]:
    """Whether a file is, as it is now, and why not."""
    return ["not in force, but what was good before it:", *problem.splitlines()] if problem else ["in force"]


def agent_line(message: GetAgentInfoResponse) -> str:
    """The same in a line, to compare agents by."""
    jobs = f"{message.active_jobs} of {message.max_active_jobs} jobs"
    words = (versions(message), f"Linux {message.kernel}", f"cgroups {message.cgroup_mode}", jobs)
    return "  ".join(inline(word) for word in words) + ("  draining" if message.draining else "")


def event(message: Job) -> str:
    """A job that has changed, in a line of its own: columns without knowing the other lines."""
    return event_of(message.id, status(message), message.principal.rpartition("/")[2], cut(command(message)))


def event_of(job_id: str, state: str, by: str = "", words: str = "") -> str:
    return f"{job_id}  {state:<14}  {inline(by):<10}  {words}".rstrip()


def labelled(pairs: Pairs) -> str:
    return aligned([pair for pair in pairs if pair[1]])


def limits_of(message: Job, names: Iterable[str]) -> str:
    """One line of the job's limits with these names."""
    wanted = set(names)
    told = ", ".join(_limit(limit) for limit in message.limits if limit.name in wanted)
    return f"{message.id}  {inline(told)}"


def status(message: Job) -> str:
    """State and end in a word or two: `RUNNING`, `EXITED 1`, `SIGNALED KILL`, `OOM_KILLED`."""
    reason = client_json.enum_name(message, "end_reason")
    match reason:
        case None:
            state = client_json.enum_name(message, "state") or "unknown"
            return f"{state} stuck" if message.stuck else state
        case "EXITED":
            return f"EXITED {message.exit_code}"
        case "SIGNALED":
            return f"SIGNALED {signal_name(message.signal)}"
        case _:
            return reason


def command(message: Job) -> str:
    """The command line, quoted as a shell would need it."""
    return shlex.join((message.command, *message.args))


def signal_name(number: int) -> str:
    """`KILL` for 9; the number itself where it has no name."""
    known = number in tuple(signal.Signals)
    return signal.Signals(number).name.removeprefix("SIG") if known else str(number)


def age(seconds: float) -> str:
    """`12s`, `5m`, `3h`, `2d`; 0 s for what a slower clock puts into the future."""
    for unit, letter in _AGES:
        if seconds >= unit:
            return f"{int(seconds // unit)}{letter}"
    return f"{max(0, int(seconds))}s"


def size(count: int) -> str:
    """`3.4M` for bytes, in powers of 1024."""
    for unit, letter in _SIZES:
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + letter
    return f"{count} bytes"


def _what(message: Job) -> Pairs:
    yield "id", message.id
    yield "state", status(message)
    yield "detail", message.detail
    yield "command", command(message)
    yield "directory", message.workdir
    yield from _given(message)
    yield "started by", message.principal
    yield "request", message.request_id
    user = f"user {message.user} ({message.uid})" if message.user else f"user id {message.uid}"
    yield "process", f"{message.pid}, {user}" if message.pid else ""


def _given(message: Job) -> Pairs:
    yield "environment", ", ".join(message.env_names)
    yield "labels", ", ".join(f"{key}={value}" for key, value in sorted(message.labels.items()))


def _sandbox(message: Job) -> Pairs:
    # The profile says which parts there are, and JSON names them.
    missing = message.sandbox.missing
    lacking = f", without {', '.join(missing)}, which the host lacks" if missing else ""
    yield "sandbox", f"{message.sandbox.profile}{lacking}" if message.sandbox.profile else ""


def _life(message: Job, now: float) -> Pairs:
    for label, field in (("created", "created_at"), ("started", "started_at"), ("ended", "ended_at")):
        told = client_json.time(message, field)
        yield label, f"{told} ({age(now - getattr(message, field).seconds)} ago)" if told else ""
    yield "timeout", _timeout(message)
    if message.HasField("exit_code"):
        yield "exit code", str(message.exit_code)
    if message.HasField("signal"):
        yield "signal", f"{message.signal} ({signal_name(message.signal)})"


def _timeout(message: Job) -> str:
    return f"{client_json.seconds(message.timeout):g} s" if message.HasField("timeout") else ""


def _limits(message: Job) -> Pairs:
    yield "profile", message.profile
    yield from _under("limits", [_limit(limit) for limit in message.limits])
    again = f"{message.limits_restored} times, since others had changed them"
    yield "set again", again if message.limits_restored else ""
    usage = message.usage
    throttled = client_json.seconds(usage.throttled_time)
    yield "cpu used", f"{client_json.seconds(usage.cpu_time):.3f} s, held back for {throttled:.3f} s"
    if usage.io_read_bytes or usage.io_written_bytes:
        yield "disk", f"{size(usage.io_read_bytes)} read, {size(usage.io_written_bytes)} written"
    now = f", {size(usage.memory_bytes)} now" if usage.memory_bytes else ""
    yield "memory peak", f"{size(usage.memory_peak_bytes)}{now}, {usage.oom_kills} killed for want of it"
    yield "waited", _stalls(usage)


def _stalls(usage: Usage) -> str:
    times = (
        ("a CPU", usage.cpu_stalled_time),
        ("memory", usage.memory_stalled_time),
        ("a disk", usage.io_stalled_time),
    )
    told = ((what, client_json.seconds(time)) for what, time in times)
    return ", ".join(f"{seconds:.3f} s for {what}" for what, seconds in told if seconds)


def _output(message: Job) -> Pairs:
    end = "complete" if message.output_ended else "still growing"
    lost = f", {message.lost_bytes} bytes lost" if message.lost_bytes else ""
    yield "output", f"{message.log_bytes} bytes, {end}{lost}"
    if message.stdin_open or message.stdin_bytes:
        yield "input", f"{message.stdin_bytes} bytes taken, {'open' if message.stdin_open else 'ended'}"
    yield "log", message.log_path


def _limit(limit: LimitStatus) -> str:
    kept = limit.value if limit.value != limit.requested else ""
    parts = (limit.name, limit.requested, f"(kept at {kept})" if kept else "", *_enforced(limit))
    return " ".join(part for part in parts if part)


def _support(limit: LimitSupport) -> str:
    default = f"default {limit.default_value}" if limit.default_value else "no default"
    return " ".join((limit.name, f"{default}, at most {limit.maximum}", *_enforced(limit)))


def _profile(profile: LimitProfile) -> str:
    limits = ", ".join(f"{name} {value}" for name, value in client_json.limits(profile.limits).items())
    return f"{profile.name}{' (default)' if profile.is_default else ''}: {limits}"


def lacks(limit: LimitSupport) -> bool:
    """True for a limit that the host cannot set."""
    return client_json.enum_name(limit, "enforcement") == "UNSUPPORTED"


def _enforced(limit: LimitStatus | LimitSupport) -> tuple[str, ...]:
    word = client_json.enum_name(limit, "enforcement") or "unknown"
    return (f"{word}: {limit.detail}" if limit.detail else word,)


def _under(label: str, lines: Iterable[str]) -> Pairs:
    """Several lines under one label."""
    for line in lines:
        yield label, line
        label = ""


def cut(text: str) -> str:
    """Others' text for the last column: printable, and not too long."""
    shown = inline(text)
    return shown if len(shown) <= _COMMAND_WIDTH else f"{shown[: _COMMAND_WIDTH - 1]}…"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns; the last one is as wide as it likes."""
    cells = [[inline(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    return "\n".join(
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]])
        for row in cells
    )
