"""What becomes of the sandbox that a job asks for, on this host and under its settings."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from jobworker import codec
from jobworker.errors import SandboxUnsupported
from jobworker.jobs import JobSpec
from jobworker.kernel import features, seccomp, syscalls
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.confinement import Confinement, private_directories
from jobworker.sandbox import PARTS, Applied, Part, Profile
from jobworker.settings.schema import IsolationSettings
from jobworker.supervisor import helper
from jobworker.supervisor.log import Log
from jobworker.wire.host import PartSupport

_NO_CGROUP = "none"
# Seconds for a look at the host. It takes milliseconds, or a few of these where much else is going on; none is
# waited for longer, since there may be jobs to be looked after.
_PATIENCE = 15.0
_SIZE = 65_536


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the host has found.

    Attributes:
        filter: the program of the filter of system calls, in hex; empty if there can be none.
        parts: all there are.
    """

    filter: str
    parts: tuple[PartSupport, ...]


class Isolation:
    """Profiles, and what of them this host can apply.

    Args:
        directory: one like those that jobs get as their own.
    """

    def __init__(self, settings: IsolationSettings, directory: str, hierarchy: Hierarchy, log: Log) -> None:
        self.default = settings.default
        self._refuses = settings.missing == "refuse"
        self._private = private_directories()
        self._writable = _writable(settings.writable, (*self._private, "/proc"), log)
        model = Confinement(frozenset(), directory, self._writable, self._private)
        looked = _looked(model)
        self._filter = seccomp.Filter(bytes.fromhex(looked.filter)) if looked.filter else None
        self._reasons = {each.part: each.reason for each in looked.parts if each.reason}
        if hierarchy.mode == _NO_CGROUP:
            # There the job is held together by an init, which would be outside of the namespace.
            self._reasons[Part.PID_NAMESPACE] = "jobs have no cgroup here"
        if self._reasons:
            missing = {part.value: reason for part, reason in self._reasons.items()}
            log.warning("this host cannot apply all parts of the sandbox profiles", missing=missing)

    def decide(self, spec: JobSpec, own_directory: str) -> tuple[Confinement, Applied]:
        """The sandbox of a job that is about to be started.

        Raises:
            SandboxUnsupported: not on this host.
        """
        profile = Profile(spec.sandbox or self.default)
        missing = [part for part in PARTS[profile] if part in self._reasons]
        if missing and self._refuses:
            raise SandboxUnsupported(profile.value, missing[0].value, self._reasons[missing[0]])
        applied = [part for part in PARTS[profile] if part not in missing]
        ready = self._filter if Part.SYSTEM_CALLS in applied else None
        confinement = Confinement(frozenset(applied), own_directory, self._writable, self._private, ready)
        return confinement, Applied(profile.value, _names(applied), _names(missing))

    def support(self) -> tuple[PartSupport, ...]:
        """For those who ask what can be had here."""
        return tuple(PartSupport(part, self._reasons.get(part, "")) for part in Part)


def _writable(paths: tuple[str, ...], own: tuple[str, ...], log: Log) -> tuple[str, ...]:
    """The directories that stay writable, by their real paths; `own` are those that each job has for itself."""
    told = dict(zip(paths, _in_helpers(partial(_real, path) for path in paths), strict=True))
    found = {path: os.fsdecode(real) for path, real in told.items() if real}
    if silent := [path for path, real in told.items() if real is None]:
        log.warning("isolation.writable names what does not answer: it is left out", paths=silent)
    if absent := [path for path, real in told.items() if real == b""]:
        log.warning("isolation.writable names what is no directory", paths=absent)
    if shared := [path for path, real in found.items() if any(_holds(real, each) for each in own)]:
        log.warning("isolation.writable leads to what each job has of its own: it stays so", paths=shared)
    real = set(found.values()) - {found[path] for path in shared}
    # One below another is in that already; and those who may write there could make a link of the way to it.
    return tuple(path for path in sorted(real) if not any(_holds(other, path) for other in real - {path}))


def _real(path: str) -> bytes:
    """The real path of a directory; empty if it is none."""
    return os.fsencode(os.path.realpath(path)) if os.path.isdir(path) else b""


def _holds(directory: str, path: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


def _names(parts: list[Part]) -> tuple[str, ...]:
    return tuple(part.value for part in parts)


def _looked(model: Confinement) -> Found:
    """What a look at the host finds; that no part can be applied, if it is not done in time.

    Raises:
        ChildProcessError: it has ended early.
    """
    (said,) = _in_helpers([lambda: codec.dumps(_look(model))])
    if said is None:
        late = f"trying it out was not done within {_PATIENCE:g} s: a file system does not answer"
        return Found("", tuple(PartSupport(part, late) for part in Part))
    if not said:
        raise ChildProcessError("a look at what sandboxes this host can have ended early")
    return codec.loads(Found, said)


def _look(model: Confinement) -> Found:
    """Try all parts; each for itself if that fails, since one that does takes others along."""
    reasons: dict[Part, str] = {}
    program = b""
    try:
        program = seccomp.make()
    except OSError as error:
        reasons[Part.SYSTEM_CALLS] = features.because(error)
    model = replace(model, filter=seccomp.Filter(program) if program else None)
    rest = frozenset(Part) - reasons.keys()
    if _why_not(rest, model):
        reasons |= {part: reason for part in rest if (reason := _why_not(frozenset({part}), model))}
    return Found(program.hex(), tuple(PartSupport(part, reasons.get(part, "")) for part in Part))


def _why_not(parts: frozenset[Part], model: Confinement) -> str:
    """Why these can't be applied; empty if they can."""
    # Without new privileges a filter can be loaded by everyone.
    ready = model.filter if Part.SYSTEM_CALLS in parts else None
    model = replace(model, parts=parts | {Part.NO_NEW_PRIVILEGES}, filter=ready)

    return _in_a_child(lambda: features.why_not(lambda: _go_into(model)).encode()).decode()


def _go_into(model: Confinement) -> None:
    if Part.PID_NAMESPACE in model.parts:
        init, pidfd = syscalls.clone3(syscalls.CLONE_NEWPID, signal.SIGCHLD)
        if init == 0:
            os._exit(0)
        os.waitpid(init, 0)
        os.close(pidfd)
    model.isolate(_no_report)
    model.renounce(_no_report)
    model.seal(_no_report)


def _no_report(step: str) -> None:
    del step


def _in_helpers(works: Iterable[Callable[[], bytes]]) -> list[bytes | None]:
    """What comes of each, in processes beside one another; None of what is not done in time, nothing of a failure.

    They hold nothing of the supervisor's, whose lock the next one needs: there may be some that can't be killed.

    Raises:
        OSError: there is no process for one.
    """
    end = time.monotonic() + _PATIENCE
    said = [helper.start_telling("jw-look", (), partial(_tell, work)) for work in works]
    return [_said(reading, end) for reading in said]


def _tell(work: Callable[[], bytes]) -> None:
    # Its end, if anything can be the end of it: nobody else knows it by then.
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    os.write(0, work())


def _said(reading: int, end: float) -> bytes | None:
    poll, data = select.poll(), b""
    poll.register(reading, select.POLLIN)
    try:
        while poll.poll(max(0.0, end - time.monotonic()) * 1000):
            piece = os.read(reading, _SIZE)
            if not piece:
                return data
            data += piece
    finally:
        os.close(reading)
    return None


def _in_a_child(work: Callable[[], bytes]) -> bytes:
    """What comes of it, in a process of its own that nothing stays of.

    Raises:
        ChildProcessError: it did not come to its end.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, work())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as said:
        data = said.read()
    if os.waitpid(child, 0)[1]:
        raise ChildProcessError("trying out what sandboxes this host can have ended early")
    return data
