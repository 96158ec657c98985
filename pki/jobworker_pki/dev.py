"""A development PKI in one directory: a CA and, signed by it, a server, a writer and a reader."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from jobworker.errors import InvalidField, PkiProblem
from jobworker.identity import DEFAULT_ROLE_OID, Role
from jobworker_pki import authority, files, keys, profiles
from jobworker_pki.authority import Pair
from jobworker_pki.files import Store
from jobworker_pki.profiles import Profile

DEFAULT_TRUST_DOMAIN = "dev.jobworker.internal"

_CA_LIFE, _LEAF_LIFE = timedelta(days=3650), timedelta(days=365)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_RENEW = "run again with --renew to have it made anew"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the set is to serve.

    Attributes:
        hosts: names and addresses of the server, besides loopback and the host's own name.
    """

    hosts: tuple[str, ...] = ()
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    role_oid: str = DEFAULT_ROLE_OID

    def profiles(self, own_names: tuple[str, ...] = ()) -> dict[str, Profile]:
        """The set's profiles by the pairs' names, the CA's first.

        Raises:
            InvalidField: something that is wanted cannot stand in a certificate.
        """
        # Each set's CA has a name of its own, so that a mix-up of two sets can be told apart.
        ca = profiles.authority(f"jobworker DEV CA {secrets.token_hex(4)}", _CA_LIFE)
        server = profiles.server((*_LOOPBACK, *own_names, *self.hosts), _LEAF_LIFE)
        return {
            "ca": ca,
            "server": server,
            "writer": self._user(Role.WRITER),
            "reader": self._user(Role.READER),
        }

    def _user(self, role: Role) -> Profile:
        return profiles.user(role.value.lower(), role, self.trust_domain, self.role_oid, _LEAF_LIFE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is there now.

    Attributes:
        made: names of the pairs that were made; empty if all were there and good.
        authority: the CA's name.
        expires: when the first certificate of the set does.
    """

    made: tuple[str, ...]
    authority: str
    expires: datetime


def ensure(path: str, wanted: Wanted, *, renew: bool, progress: Callable[[str], None]) -> Outcome:
    """Make what is missing of the set at `path`; leave alone what is there and good.

    Args:
        path: a directory; it is made if it is not there.
        wanted: what the certificates must say.
        renew: make all leaves anew, and the CA too if it is faulty.
        progress: is told what is being made; each key takes a second or more.

    Raises:
        InvalidField: something that is wanted cannot stand in a certificate.
        PkiProblem: something there is faulty and `renew` was not asked for; nothing has been changed.
    """
    now, to_make = datetime.now(UTC), wanted.profiles(_own_names())
    with files.opened(path) as store:
        pairs = _kept(store, wanted.profiles(), now, renew=renew)
        missing = tuple(name for name in to_make if name not in pairs)
        for name in missing:
            progress(f"making {name}: an RSA-{keys.KEY_BITS} key and its certificate")
            pairs[name] = _new(to_make[name], pairs.get("ca"), now)
            store.write(name, pairs[name])
    expires = min(pair.certificate.not_valid_after_utc for pair in pairs.values())
    return Outcome(missing, pairs["ca"].certificate.subject.rfc4514_string(), expires)


def _new(profile: Profile, ca: Pair | None, now: datetime) -> Pair:
    return authority.issue(ca, profile, now) if ca else authority.self_signed(profile, now)


def _kept(store: Store, asked: dict[str, Profile], now: datetime, *, renew: bool) -> dict[str, Pair]:
    """The pairs that are there, good, and not to be made anew."""
    try:
        ca = _sound(store, "ca", asked["ca"], None, now)
    except PkiProblem:
        if not renew:
            raise
        ca = None
    if renew:
        return {"ca": ca} if ca else {}
    if ca is None:
        _refuse_orphans(store, asked)
        return {}
    found = {name: _sound(store, name, profile, ca, now) for name, profile in asked.items() if name != "ca"}
    return {"ca": ca} | {name: pair for name, pair in found.items() if pair}


def _sound(store: Store, name: str, asked: Profile, ca: Pair | None, now: datetime) -> Pair | None:
    """A pair that is as asked for; None if a file of it is missing."""
    try:
        pair = store.read(name)
    except PkiProblem as problem:
        raise PkiProblem(problem.path, problem.problem, problem.fix or _RENEW) from None
    if pair:
        fault = authority.fault(pair, asked, (ca or pair).certificate, now)
        if fault:
            raise PkiProblem(store.path_of(f"{name}.pem"), fault, _RENEW)
    return pair


def _refuse_orphans(store: Store, asked: dict[str, Profile]) -> None:
    """Without its CA a set cannot be completed, and a new CA would make what is there worthless."""
    orphans = [name for name in asked if name != "ca" and store.holds(f"{name}.pem")]
    if orphans:
        missing = "ca.key" if store.holds("ca.pem") else "ca.pem"
        problem = f"is missing, and {orphans[0]}.pem hangs on it"
        raise PkiProblem(store.path_of(missing), problem, "put it back, or run again with --renew for a new set")


def _own_names() -> tuple[str, ...]:
    """This host's name, unless it is one that no certificate can carry (an underscore, say)."""
    name = socket.gethostname()
    with contextlib.suppress(InvalidField):
        profiles.host_name(name)
        return (name,)
    return ()
