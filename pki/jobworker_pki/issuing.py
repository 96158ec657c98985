"""Issuing to hosts and users: with a key made here, or for the key of a request."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509

from jobworker.errors import InvalidField, PkiProblem
from jobworker.identity import Role
from jobworker_pki import authority, files, index, profiles, reading
from jobworker_pki.files import Store
from jobworker_pki.home import INTERMEDIATE, Home
from jobworker_pki.keys import KEY_BITS
from jobworker_pki.profiles import Profile
from jobworker_pki.requests import Request

HOSTS, USERS = "hosts", "users"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A certificate that is now there.

    Attributes:
        made: False if it was there already, and good.
    """

    path: str
    certificate: x509.Certificate
    made: bool


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is asked for: a profile, and where it goes (`hosts` or `users`, and the file's name)."""

    folder: str
    name: str
    profile: Profile


def host(home: Home, name: str, more: tuple[str, ...], life: timedelta) -> Leaf:
    """A server called `name` and by `more` names and addresses.

    Raises:
        InvalidField: one of them is no name, or not one of this PKI's.
    """
    for each in (name, *more):
        home.settings.check_host(profiles.host_name(each))
    return Leaf(HOSTS, name, profiles.server((name, *more), life))


def user(home: Home, name: str, role: Role, life: timedelta) -> Leaf:
    """A client.

    Raises:
        InvalidField: the name cannot stand in an identity.
    """
    profile = profiles.user(name, role, home.settings.trust_domain, home.settings.role_oid, life)
    return Leaf(USERS, name, profile)


def requested_host(home: Home, names: tuple[str, ...], name: str, life: timedelta) -> Leaf:
    """A server by the names that were confirmed, in the file `name`; without one, in that of its first name."""
    leaf = host(home, names[0], names[1:], life)
    return Leaf(HOSTS, check_file_name(name) if name else names[0], leaf.profile)


def requested_user(home: Home, request: Request, name: str, role: Role, life: timedelta) -> Leaf:
    """The client that a request asks for, which must be the one that was confirmed.

    Raises:
        InvalidField: the name cannot stand in an identity.
        PkiProblem: the request is for another one.
    """
    leaf = user(home, name, role, life)
    uri = f"spiffe://{home.settings.trust_domain}/user/{name}"
    if request.uris != (uri,):
        asked = ", ".join(request.uris) or "no URI"
        raise PkiProblem(request.path, f"asks for {asked}", f"it must ask for {uri} and no other URI")
    return leaf


def issue(home: Home, leaf: Leaf, bits: int = KEY_BITS) -> Outcome:
    """A certificate with a new key beside it; what is there and as asked for is left alone.

    Raises:
        PkiProblem: something else is there under that name.
    """
    now = datetime.now(UTC)
    with files.opened(home.store.path_of(leaf.folder)) as store:
        found = _found(home, store, leaf, now)
        if found:
            _check_key(store, leaf.name, found)
            return Outcome(store.path_of(f"{leaf.name}.pem"), found, made=False)
        pair = authority.issue(home.issuer(now), leaf.profile, now, bits)
        path = store.path_of(f"{leaf.name}.pem")
        home.record("issue", INTERMEDIATE, pair.certificate, file=path)
        store.write(leaf.name, pair, chain=(home.certificate(INTERMEDIATE),))
    return Outcome(path, pair.certificate, made=True)


def sign(home: Home, leaf: Leaf, request: Request) -> Outcome:
    """A certificate for the request's key, which stays where it is; a revoked key beside it goes.

    Raises:
        PkiProblem: something else is there under that name.
    """
    now = datetime.now(UTC)
    with files.opened(home.store.path_of(leaf.folder)) as store:
        path = store.path_of(f"{leaf.name}.pem")
        found = _found(home, store, leaf, now)
        if found:
            if found.public_key() != request.key:
                raise PkiProblem(path, "is for another key", _anew(path))
            return Outcome(path, found, made=False)
        _check_unrevoked(home, request)
        revoked = _has_revoked_key(home, store, leaf.name, request)
        certificate = authority.sign(home.issuer(now), leaf.profile, request.key, now)
        home.record("sign", INTERMEDIATE, certificate, file=path)
        if revoked:
            store.remove(f"{leaf.name}.key")
        store.put(f"{leaf.name}.pem", authority.pem(certificate, home.certificate(INTERMEDIATE)))
    return Outcome(path, certificate, made=True)


def _found(home: Home, store: Store, leaf: Leaf, now: datetime) -> x509.Certificate | None:
    """The certificate that is there, if it is as asked for; None if there is none, or a revoked one."""
    file = f"{leaf.name}.pem"
    if not store.holds(file):
        return None
    certificate, path = store.certificate(file), store.path_of(file)
    if f"{certificate.serial_number:x}" in index.revocations(index.records(home.store)):
        return None
    fault = authority.certificate_fault(certificate, leaf.profile, home.certificate(INTERMEDIATE), now)
    if fault and authority.foreign(certificate, home.certificate(INTERMEDIATE)):
        # What another CA has signed, one before this say, is known by its serial number alone.
        fix = f"revoke it (worker-pki revoke {certificate.serial_number:x}) and issue again"
        raise PkiProblem(path, fault, fix)
    if set(reading.names(certificate)) != set(leaf.profile.names()):
        rename = f"have it bear others (worker-pki renew {path} --san ...), or " if leaf.folder == HOSTS else ""
        raise PkiProblem(path, f"names {', '.join(reading.names(certificate))}", f"{rename}{_anew(path)}")
    if fault:
        # Renewed, it would say the same until another day.
        outdated = authority.untimely(certificate, now)
        renew = f"renew it (worker-pki renew {path}), or " if outdated else ""
        raise PkiProblem(path, fault, f"{renew}{_anew(path)}")
    return certificate


def _check_unrevoked(home: Home, request: Request) -> None:
    if index.is_revoked(index.records(home.store), request.key):
        raise PkiProblem(request.path, "its key has been revoked", "make a new key, and a request with it")


def _has_revoked_key(home: Home, store: Store, name: str, request: Request) -> bool:
    """Whether a key is there that is good for nothing any more, and would be taken for the request's.

    Raises:
        PkiProblem: a key is there that may still be good, and is not the request's.
    """
    file = f"{name}.key"
    if not store.holds(file):
        return False
    found = store.key(file).public_key()
    if found == request.key:
        return False
    if not index.is_revoked(index.records(home.store), found):
        raise PkiProblem(store.path_of(file), "is not the key of the request", "move it away, and sign again")
    return True


def _check_key(store: Store, name: str, certificate: x509.Certificate) -> None:
    path = store.path_of(f"{name}.key")
    if not os.path.lexists(path):
        raise PkiProblem(path, f"is not beside {name}.pem", "leave it where it is, or revoke and issue again")
    if store.key(f"{name}.key").public_key() != certificate.public_key():
        raise PkiProblem(path, f"is not the key of {name}.pem", _anew(store.path_of(f"{name}.pem")))


def _anew(path: str) -> str:
    return f"revoke it (worker-pki revoke {path}) and issue again"


def check_file_name(name: str) -> str:
    """Return a name that can be a file's.

    Raises:
        InvalidField: it would lie elsewhere, or be hidden.
    """
    if not name or "/" in name or name.startswith(".") or not name.isprintable():
        raise InvalidField("name", f"{name!r:.80} cannot name a file", "alice")
    return name
