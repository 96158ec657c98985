"""What the files that the gateway's trust rests on have wrong with them, as it would find on its start."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from jobworker.errors import InvalidField, PkiProblem
from jobworker.findings import Finding, failure, warning
from jobworker.gateway.trust import Trust
from jobworker.settings import extras
from jobworker.settings.schema import Settings

# What is not renewed by then is likely to be forgotten.
_SOON = 7 * 24 * 3600
_NS = 1_000_000_000


def become(uid: int) -> None:
    """As root: become the gateway's user, for good, since what it can read is part of what is to be found out."""
    if os.geteuid() != 0 or uid == 0:
        return
    try:
        user = pwd.getpwuid(uid)
        group, groups = user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)
    except KeyError:
        group, groups = uid, []
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(uid, uid, uid)


def findings(settings: Settings) -> Iterator[Finding]:
    """Check by check, until one fails that the others stand on."""
    try:
        extras.check(settings)
    except InvalidField as error:
        yield failure(error.field, error.problem, "the gateway does not start like this")
    if unreadable := list(_unreadable(settings)):
        yield from unreadable
        return
    try:
        trust = Trust(settings)
    except PkiProblem as error:
        yield failure("tls", f"{error.path}: {error.problem}", error.fix)
        return
    own, lists = trust.credentials.get(), trust.revocations.get().ends
    yield Finding("tls", f"{settings.tls.ca}, {settings.tls.cert} and {settings.tls.key} fit together")
    if own.begins_ns > time.time_ns():
        told = f"the agent's certificate begins on {_utc(own.begins_ns / _NS)} only"
        yield failure("tls cert", told, "compare the clocks of this host and of the one that issued it")
    yield _until("tls cert", "the agent's certificate", own.expires_ns / _NS)
    yield _until("tls ca", "the first of the CAs that clients are checked with", own.ca_expires_ns / _NS)
    if lists is not None:
        yield _until("tls crl", "the first of the revocation lists", lists)


def _unreadable(settings: Settings) -> Iterator[Finding]:
    """Each file that is named and cannot be read by who this is."""
    for name in ("ca", "cert", "key", "crl", "revoked"):
        if path := getattr(settings.tls, name):
            try:
                # Not waiting for whoever might write to a FIFO.
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                told, hint = f"{path}: cannot be read: {error.strerror}", f"put it there, or correct tls.{name}"
                if isinstance(error, PermissionError):
                    hint = _who(settings.gateway_uid)
                yield failure(f"tls {name}", told, hint)


def _who(gateway: int) -> str:
    if os.geteuid() != gateway:
        return "run this as root, which looks as the gateway's user does"
    return f"let the gateway's user ({gateway}) read it, and pass through the directories above"


def _until(check: str, what: str, ends: float) -> Finding:
    left = ends - time.time()
    if left <= 0:
        return failure(check, f"{what} ended on {_utc(ends)}", "put a new one there; no restart is needed")
    if left < _SOON:
        return warning(check, f"{what} ends on {_utc(ends)}", "renew it; no restart is needed")
    return Finding(check, f"{what} is good until {_utc(ends)}")


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d at %H:%M} UTC"
