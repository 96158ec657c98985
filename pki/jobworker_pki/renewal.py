"""Renewing a certificate in place: role and key stay, the dates move on, and a host may be called otherwise."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from jobworker.errors import PkiProblem, Unauthenticated
from jobworker_pki import authority, files, index, issuing, keys, profiles, reading
from jobworker_pki.authority import CLOCK_SKEW, Pair
from jobworker_pki.files import Store
from jobworker_pki.home import INTERMEDIATE, ROOT, Home, ca_profile
from jobworker_pki.profiles import Profile


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        certificate: the one that is there now.
        due: when two thirds of its life have passed.
        made: it is a new one.
    """

    certificate: x509.Certificate
    due: datetime
    made: bool


def renew(
    home: Home, path: str, *, life: timedelta | None, force: bool, new_key: bool, names: tuple[str, ...] = ()
) -> Outcome:
    """Replace a certificate in its file once two thirds of its life have passed, or if it is to bear other names.

    The key stays, so that one rename replaces it all; it may be on another host.

    Args:
        home: the PKI that issued it.
        path: its file.
        life: of the new one; that of the old one if None.
        force: also before its time.
        new_key: make a key too. Between the two renames the key is a moment ahead of its certificate.
        names: a host's names and addresses; those of the old one if empty.

    Raises:
        InvalidField: one of the names is none, or not one of this PKI's.
        PkiProblem: it is not this PKI's, is revoked, would gain nothing, or cannot have that key or those names.
    """
    now, file = datetime.now(UTC), os.path.basename(path)
    with _folder(home, path) as store:
        old = store.certificate(file)
        ca = _issuer(home, store.path_of(file), old)
        if new_key:
            _check_new_key(store.path_of(file), old)
        else:
            _check_pair(home, store, file, old)
        profile = _profile(home, store.path_of(file), old, life or _life(old), names)
        renamed = set(profile.names()) != set(reading.names(old))
        if not force and not renamed and now < due(old):
            return Outcome(old, due(old), made=False)
        signer = home.signer(ca, now) if ca == ROOT else home.issuer(now)
        if not renamed:
            _check_gain(home, store.path_of(file), old, profile, signer)
        fresh = _renewed(home, store, (file, old), (signer, profile), new_key=new_key)
    return Outcome(fresh, due(fresh), made=True)


def due(certificate: x509.Certificate) -> datetime:
    """When two thirds of a certificate's life have passed."""
    return certificate.not_valid_before_utc + CLOCK_SKEW + _life(certificate) * 2 / 3


def _life(certificate: x509.Certificate) -> timedelta:
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc - CLOCK_SKEW


@contextlib.contextmanager
def _folder(home: Home, path: str) -> Iterator[Store]:
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.realpath(directory) == os.path.realpath(home.store.path):
        with files.reported(home.store.path):
            yield home.store  # a second lock on it would wait for the first
        return
    with files.existing(directory) as store:
        yield store


def _issuer(home: Home, path: str, certificate: x509.Certificate) -> str:
    ca = home.signer_of(path, certificate, "renew")
    if certificate.subject == certificate.issuer:
        raise PkiProblem(path, "is the root, which everybody trusts by its file", "make a new PKI in good time")
    done = index.records(home.store)
    if f"{certificate.serial_number:x}" in index.revocations(done):
        raise PkiProblem(path, "is revoked", "remove it, or issue a new one, with a new key")
    if index.is_revoked(done, certificate.public_key()):
        raise PkiProblem(path, "its key has been revoked", "revoke it too, and issue a new one, with a new key")
    return ca


def _check_pair(home: Home, store: Store, file: str, certificate: x509.Certificate) -> None:
    """A renewal with a new key that was cut off has left that beside the old certificate."""
    stem = file.removesuffix(".pem")
    key = f"{stem}.key"
    if reading.is_ca(certificate) or key == file or not store.holds(key):
        return
    if store.key(key).public_key() == certificate.public_key():
        return
    problem, fix = f"is not the key of {file}", f"worker-pki renew --new-key --force {store.path_of(file)}"
    if index.is_requested(index.records(home.store), certificate.public_key()):
        # A new key would leave the one who made the request without a certificate.
        problem = f"{problem}, which was signed for a request"
        fix = "move it away: the right one is where the request was made"
    raise PkiProblem(store.path_of(key), problem, fix)


def _check_new_key(path: str, certificate: x509.Certificate) -> None:
    if reading.is_ca(certificate):
        raise PkiProblem(path, "is a CA, whose key stays for the sake of what it has signed", "omit --new-key")
    if not path.endswith(".pem"):
        fix = "renew it without --new-key, or rename certificate and key to NAME.pem and NAME.key"
        raise PkiProblem(path, "is not called NAME.pem, so it is unclear which file is its key", fix)


def _profile(home: Home, path: str, old: x509.Certificate, life: timedelta, names: tuple[str, ...]) -> Profile:
    """What the old certificate says, made anew by the rules of today and for the names that a host is to have."""
    if reading.is_ca(old):
        _check_nameless(path, names)
        common_name = old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return replace(ca_profile(INTERMEDIATE, home.settings, str(common_name)), life=life)
    try:
        bearer = reading.bearer(old, home.settings.role_oid)
    except Unauthenticated as error:
        raise PkiProblem(path, error.reason, "issue a new one") from None
    if isinstance(bearer, reading.Host):
        first, *more = names or bearer.names
        return issuing.host(home, first, tuple(more), life).profile
    _check_nameless(path, names)
    return profiles.user(bearer.name, bearer.role, bearer.trust_domain, home.settings.role_oid, life)


def _check_nameless(path: str, names: tuple[str, ...]) -> None:
    if names:
        raise PkiProblem(path, "is not a host's, and so has no names of hosts", "omit --san")


def _check_gain(home: Home, path: str, old: x509.Certificate, profile: Profile, signer: Pair) -> None:
    """A leaf may get a shorter life than it had; a CA with one would cut short what it signs from then on."""
    until, ends = signer.certificate.not_valid_after_utc, f"its issuer ({INTERMEDIATE}) ends"
    fix = f"renew that first: worker-pki renew {home.store.path_of(INTERMEDIATE)}.pem"
    if reading.is_ca(old):
        until, ends = min(until, datetime.now(UTC) + profile.life), f"its issuer ({ROOT}) or --days ends it"
        fix = "give more --days, or make a new PKI: worker-pki init DIR"
    if until <= old.not_valid_after_utc:
        raise PkiProblem(path, f"would not live longer, for {ends}", fix)


def _renewed(
    home: Home, store: Store, was: tuple[str, x509.Certificate], by: tuple[Pair, Profile], *, new_key: bool
) -> x509.Certificate:
    (file, old), (signer, profile) = was, by
    public = old.public_key()
    key = keys.new() if new_key else None
    if key:
        public = key.public_key()
    if not isinstance(public, rsa.RSAPublicKey):
        raise PkiProblem(store.path_of(file), "the key is not RSA", "issue a new one")
    fresh = authority.sign(signer, profile, public, datetime.now(UTC))
    ca = ROOT if reading.is_ca(old) else INTERMEDIATE
    home.record("renew", ca, fresh, file=store.path_of(file), replaces=f"{old.serial_number:x}")
    if key:
        store.put(f"{file.removesuffix('.pem')}.key", keys.pem(key), files.KEY_MODE)
    chain = () if ca == ROOT else (home.certificate(INTERMEDIATE),)
    store.put(file, authority.pem(fresh, *chain))
    return fresh
