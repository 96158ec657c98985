"""The vocabulary of isolation: profiles, the parts they are made of, and what was applied to a job."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType

from jobworker.errors import InvalidField


class Profile(enum.Enum):
    """How far a job is kept from its host; each holds what the one before it does."""

    HOST = "host"
    STANDARD = "standard"
    STRICT = "strict"


class Part(enum.Enum):
    """One means of isolation."""

    # prctl(2): no program gives the job more rights than it has, setuid ones neither.
    NO_NEW_PRIVILEGES = "no-new-privileges"
    # capabilities(7): none, and none to be had.
    NO_CAPABILITIES = "no-capabilities"
    # seccomp(2): system calls that a job has no business with fail.
    SYSTEM_CALLS = "system-calls"
    # mount_namespaces(7): all but the job's directory, /tmp, /var/tmp, /dev/shm and what the settings name.
    READ_ONLY_SYSTEM = "read-only-system"
    # /tmp, /var/tmp and /dev/shm of its own, in memory that is charged to it.
    PRIVATE_TMP = "private-tmp"
    # proc(5), hidepid: no process of another user is to be seen.
    OWN_PROCESSES = "own-processes"
    # ipc_namespaces(7), uts_namespaces(7), cgroup_namespaces(7).
    IPC_NAMESPACE = "ipc-namespace"
    UTS_NAMESPACE = "uts-namespace"
    CGROUP_NAMESPACE = "cgroup-namespace"
    # pid_namespaces(7): no other process can even be named.
    PID_NAMESPACE = "pid-namespace"
    # network_namespaces(7), with a loopback device and nothing else.
    NETWORK_NAMESPACE = "network-namespace"
    # landlock(7): the same files as READ_ONLY_SYSTEM, enforced a second time by other means.
    LANDLOCK = "landlock"


_HOST = (Part.NO_NEW_PRIVILEGES,)
_STANDARD = (
    *_HOST,
    Part.NO_CAPABILITIES,
    Part.SYSTEM_CALLS,
    Part.READ_ONLY_SYSTEM,
    Part.PRIVATE_TMP,
    Part.OWN_PROCESSES,
    Part.IPC_NAMESPACE,
    Part.UTS_NAMESPACE,
    Part.CGROUP_NAMESPACE,
)
_STRICT = (*_STANDARD, Part.PID_NAMESPACE, Part.NETWORK_NAMESPACE, Part.LANDLOCK)

PARTS = MappingProxyType({Profile.HOST: _HOST, Profile.STANDARD: _STANDARD, Profile.STRICT: _STRICT})
PROFILES = tuple(profile.value for profile in Profile)


@dataclass(frozen=True, slots=True)
class Applied:
    """A job's isolation.

    Attributes:
        profile: its name; empty for a job of a version that had none.
        parts: the names of those that were applied.
        missing: of those that the profile has and this host cannot apply.
    """

    profile: str = ""
    parts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


NOT_SANDBOXED = Applied()


def check_profile(name: str) -> None:
    """Check the name of a profile, which may be empty.

    Raises:
        InvalidField: there is no such profile.
    """
    if name and name not in PROFILES:
        raise InvalidField("sandbox", f"{name!r:.40} is not one of {', '.join(PROFILES)}", Profile.STANDARD.value)
