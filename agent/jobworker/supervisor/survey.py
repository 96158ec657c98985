"""What this host can do for jobs, check by check: as a supervisor would find it that started now.

For `worker-agent doctor`. It makes a cgroup, as that start would, and removes it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from jobworker import codec
from jobworker.errors import JobWorkerError
from jobworker.findings import Finding, Findings, Level, by_reason, failure, of_limits, warning
from jobworker.kernel import clock, disk, features
from jobworker.kernel.cgroup import detect
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.subtree import SubtreeHierarchy
from jobworker.limits import NO_LIMITS, NO_PROFILES, Enforcement
from jobworker.sandbox import PARTS, Profile
from jobworker.settings.schema import Settings
from jobworker.supervisor import limit_profiles, policies, reading, store
from jobworker.supervisor.isolation import Isolation
from jobworker.supervisor.limits import LimitRules
from jobworker.supervisor.log import Log

_PROBE = "probe"
# Below it, logs soon have gaps.
_LITTLE_SPACE = 1024**3
_MIB = 1024**2


def told(settings: Settings) -> bytes:
    """All that was found, as canonical JSON."""
    return codec.dumps(Findings(tuple(findings(settings))))


def findings(settings: Settings) -> Iterator[Finding]:
    """What is found, check by check.

    Args:
        settings: of the agent; without a state directory of one that is yet to be set up.
    """
    system = os.uname()
    yield Finding("kernel", f"Linux {system.release} on {system.machine}")
    yield from _kernel()
    hierarchy, reason = _hierarchy(settings)
    try:
        yield _cgroups(hierarchy, reason)
        yield from _launching(hierarchy)
        yield from _limits(settings, hierarchy)
        yield from _sandbox(settings, hierarchy)
    finally:
        hierarchy.remove()
    yield _clock()
    if settings.state_dir:
        yield from _state(settings.state_dir)
    if settings.policy:
        yield _policy(settings.policy)
    if settings.limits:
        yield _profiles(settings.limits)


def _kernel() -> Iterator[Finding]:
    if why := features.why_not(features.open_beneath):
        yield failure("kernel", f"files are not opened safely ({why})", "an agent needs openat2: Linux 5.6")
    if why := features.why_not(features.tell_exit):
        told = f"a process that is nobody's child does not tell how it ended ({why})"
        yield warning("kernel", told, "only jobs that outlive keeper and supervisor are LOST for it; Linux 6.15")


def _hierarchy(settings: Settings) -> tuple[Hierarchy, str]:
    try:
        return detect.hierarchy(f"doctor-{os.getpid()}", settings.jobs.cgroup_parent), ""
    except detect.NoCgroups as error:
        return SubtreeHierarchy(str(error)), str(error)


def _cgroups(hierarchy: Hierarchy, reason: str) -> Finding:
    if reason:
        return warning("cgroups", f"none for the agent: {reason}", "without them nothing can be limited")
    return Finding("cgroups", f"{hierarchy.mode}, and one can be made")


def _launching(hierarchy: Hierarchy) -> Iterator[Finding]:
    group = hierarchy.create(_PROBE, NO_LIMITS)
    try:
        directory = group.clone_into_fd
        if why := features.why_not(lambda: features.clone3(directory)):
            yield warning("kernel", f"no clone3 into a cgroup ({why})", "fork takes its place; Linux 5.7 has it")
        if directory is not None and not _has(directory, "cgroup.kill"):
            told = "no cgroup.kill: a cgroup is frozen and killed process by process"
            yield warning("kernel", told, "that works, and takes longer; Linux 5.14 has it")
    finally:
        group.remove()


def _has(directory: int, name: str) -> bool:
    return os.access(name, os.F_OK, dir_fd=directory)


def _limits(settings: Settings, hierarchy: Hierarchy) -> Iterator[Finding]:
    support = LimitRules(settings.jobs, hierarchy, lambda: NO_PROFILES, disk.of_path).support()
    lacking = [each for each in support if each.enforcement is Enforcement.UNSUPPORTED]
    held = [each for each in support if each not in lacking]
    yield from of_limits(
        hierarchy.mode,
        [(each.detail, each.name) for each in lacking],
        [(each.detail, each.name) for each in held if each.detail],
        [each.name for each in held],
        "a job that asks for one is refused, unless it takes what it gets",
    )


def _sandbox(settings: Settings, hierarchy: Hierarchy) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="jobworker-doctor-") as directory:
        isolation = Isolation(settings.isolation, directory, hierarchy, Log("error"))
    reasons = {each.part: each.reason for each in isolation.support() if each.reason}
    refuses = settings.isolation.missing == "refuse"
    hint = (
        "mend that, or have jobs started without it: `isolation: {missing: report}`"
        if refuses
        else "jobs are started without it, and say so"
    )
    for profile in Profile:
        missing = [(reasons[part], part.value) for part in PARTS[profile] if part in reasons]
        used = profile.value == settings.isolation.default
        level = Level.FAIL if used and refuses else Level.WARN
        for told in by_reason(missing):
            yield Finding("sandbox", f"profile {profile.value} lacks {told}", level, hint)
        if not missing:
            default = ", the one by default," if used else ""
            yield Finding("sandbox", f"profile {profile.value}{default} has all of its parts")


def _clock() -> Finding:
    try:
        kept = clock.is_kept()
    except OSError as error:
        return warning("clock", f"cannot be asked: {error.strerror}", "see that it is right: dates depend on it")
    if kept:
        return Finding("clock", "is kept, says the kernel")
    return warning("clock", "nobody keeps it, says the kernel", "install chrony or the like: dates depend on it")


def _state(path: str) -> Iterator[Finding]:
    if not os.path.isdir(path):
        yield Finding("state", f"{path} is not there yet; an agent makes it")
        return
    try:
        if os.path.isdir(os.path.join(path, "jobs")):
            store.check(path)
        yield Finding("state", f"{path} can be read by this version")
        yield _space(path)
        yield _disk(path)
    except (JobWorkerError, OSError) as error:
        yield failure("state", f"{path}: {error}")


def _space(path: str) -> Finding:
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    told = f"{free // _MIB} MiB and {status.f_favail} files are free for {path}"
    if status.f_flag & os.ST_RDONLY:
        return failure("space", f"{path} is on a read-only file system", "mount it writable")
    if free < _LITTLE_SPACE or not status.f_favail:
        return warning("space", told, "make room: output that cannot be written is lost, as a gap")
    return Finding("space", told)


def _disk(path: str) -> Finding:
    try:
        return Finding("disk", f"limits of IO are for {disk.of_path(path).name}, which {path} is on")
    except disk.NoDisk as error:
        return warning("disk", str(error), "limits of IO are refused there; put state_dir on a disk for them")


def _policy(path: str) -> Finding:
    try:
        policy, _ = reading.read(policies.SOURCE, path)
    except JobWorkerError as error:
        return failure("policy", str(error), "`worker-agent policy check` tells all that is wrong with it")
    return Finding("policy", f"{path} is good: {len(policy.rules)} rules")


def _profiles(path: str) -> Finding:
    try:
        limits, _ = reading.read(limit_profiles.SOURCE, path)
    except JobWorkerError as error:
        return failure("profiles", str(error), "`worker-agent limits check` tells all that is wrong with it")
    return Finding("profiles", f"{path} is good: {len(limits.profiles)} profiles of limits")
