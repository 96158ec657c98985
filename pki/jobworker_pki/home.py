"""A PKI's directory: an offline root, the intermediate that issues, the settings and the index.

pki.json                                  the settings
root.pem root.key                         the root CA; its key belongs offline
intermediate.pem intermediate.key         the CA that signs leaves and the revocation list
ca.pem                                    what agents and clients are given to trust: the root
index.jsonl                               what was issued and revoked
intermediate.crl root.crl                 the revocation lists
hosts/NAME.pem NAME.key                   servers' certificates, the intermediate behind each
users/NAME.pem NAME.key                   clients'
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509

from jobworker.errors import PkiProblem
from jobworker_pki import authority, files, index, profiles, reading, settings
from jobworker_pki.authority import Pair
from jobworker_pki.files import Store
from jobworker_pki.index import Record
from jobworker_pki.keys import Ask
from jobworker_pki.profiles import Profile
from jobworker_pki.settings import Settings

ROOT, INTERMEDIATE = "root", "intermediate"
ROOT_LIFE, INTERMEDIATE_LIFE = timedelta(days=7300), timedelta(days=1825)
_SETTINGS, _BUNDLE = "pki.json", "ca.pem"


@dataclass(frozen=True, slots=True)
class Home:
    """An open PKI, held alone."""

    store: Store
    settings: Settings
    ask: Ask

    def certificate(self, ca: str) -> x509.Certificate:
        if not self.store.holds(f"{ca}.pem"):
            raise PkiProblem(self.store.path_of(f"{ca}.pem"), "is missing", "run worker-pki init again")
        return self.store.certificate(f"{ca}.pem")

    def signer(self, ca: str, now: datetime) -> Pair:
        """A CA with its key; the passphrase is asked for if the key is encrypted.

        Raises:
            PkiProblem: the key is not here or cannot be opened, or the CA has expired.
        """
        certificate, file = self.certificate(ca), f"{ca}.key"
        if not self.store.holds(file):
            fix = f"bring the {ca}'s key back for this one command"
            raise PkiProblem(self.store.path_of(file), "is not here", fix)
        if now >= certificate.not_valid_after_utc:
            renew = f"renew it: worker-pki renew {self.store.path_of(ca)}.pem"
            # The root is trusted by its file, which nobody has another of.
            fix = "make a new PKI: worker-pki init DIR" if ca == ROOT else renew
            raise PkiProblem(self.store.path_of(f"{ca}.pem"), "the CA has expired", fix)
        pair = Pair(certificate, self.store.key(file, self.ask))
        if pair.key.public_key() != certificate.public_key():
            raise PkiProblem(self.store.path_of(file), f"is not the key of {ca}.pem", "restore it from a backup")
        return pair

    def issuer(self, now: datetime) -> Pair:
        """The intermediate with its key, to sign certificates of others with.

        Raises:
            PkiProblem: as `signer`, or it has been revoked, so that nobody would take them.
        """
        if index.is_revoked(index.records(self.store), self.certificate(INTERMEDIATE).public_key()):
            fix = "remove it and its key, bring back root.key, and run worker-pki init again for a new one"
            raise PkiProblem(self.store.path_of(f"{INTERMEDIATE}.pem"), "is revoked", fix)
        return self.signer(INTERMEDIATE, now)

    def record(
        self, action: str, ca: str, certificate: x509.Certificate, *, file: str, replaces: str = ""
    ) -> None:
        """Enter a certificate into the index."""
        entry = Record.of(certificate, ca, self.settings.role_oid)
        index.append(self.store, dataclasses.replace(entry, action=action, file=file, replaces=replaces))

    def signer_of(self, path: str, certificate: x509.Certificate, action: str) -> str:
        """Which of the two CAs signed the certificate that stands at `path`, to which the action is to be done.

        Raises:
            PkiProblem: neither did.
        """
        ca = ROOT if reading.is_ca(certificate) else INTERMEDIATE
        if fault := authority.foreign(certificate, self.certificate(ca)):
            raise PkiProblem(path, fault, f"{action} it where it was issued, or name that PKI with --dir")
        return ca


@contextlib.contextmanager
def opened(path: str, ask: Ask) -> Iterator[Home]:
    """The PKI at `path`, locked until the end of the `with`.

    Raises:
        PkiProblem: there is none, or it cannot be used.
    """
    fix = "make one with worker-pki init DIR, or name it with --dir DIR"
    if not os.path.isdir(path):
        raise PkiProblem(os.path.abspath(path), "is no directory", fix)
    with files.existing(path) as store:
        if not store.holds(_SETTINGS):
            raise PkiProblem(store.path, "is not a PKI's directory", fix)
        yield Home(store, settings.decode(store.path_of(_SETTINGS), store.content(_SETTINGS)), ask)


def ensure(
    path: str,
    wanted: Settings,
    choose: Callable[[], bytes | None],
    ask: Ask,
    progress: Callable[[str], None],
) -> tuple[str, ...]:
    """Make what is missing of a PKI: settings, root, intermediate; return what was made.

    Args:
        path: its directory, made if it is not there; another one has to be empty.
        wanted: must be what it was made with, if it is there.
        choose: gives the passphrase for new keys; None leaves them unencrypted.
        ask: gives the passphrase of a root key that is there.
        progress: is told what is being made.

    Raises:
        InvalidField: a setting cannot stand in a certificate.
        PkiProblem: what is there is something else; nothing has been changed.
    """
    wanted.check()
    with files.opened(path) as store:
        _check_settings(store, wanted)
        if all(store.holds(file) for file in (_SETTINGS, "root.pem", "intermediate.pem", _BUNDLE)):
            return ()
        passphrase = choose()
        if not store.holds(_SETTINGS):
            # It may have been there, empty and open.
            store.close_to_others()
        store.put(_SETTINGS, wanted.encode())
        home, made = Home(store, wanted, ask), []
        for name in (ROOT, INTERMEDIATE):
            if not store.holds(f"{name}.pem"):
                progress(f"making the {name} CA: an RSA-4096 key and its certificate")
                _make(home, name, passphrase)
                made.append(name)
        store.put(_BUNDLE, authority.pem(home.certificate(ROOT)))
    return tuple(made)


def ca_profile(name: str, wanted: Settings, common_name: str = "") -> Profile:
    """What a CA's certificate says; under a name of its own, so that a mix-up of two PKIs can be told apart."""
    common_name = common_name or f"jobworker {name} CA {secrets.token_hex(4)} {wanted.trust_domain}"
    if name == ROOT:
        return profiles.authority(common_name, ROOT_LIFE, path_length=1)
    return profiles.authority(common_name, INTERMEDIATE_LIFE, 0, wanted.permitted())


def _make(home: Home, name: str, passphrase: bytes | None) -> None:
    now, profile = datetime.now(UTC), ca_profile(name, home.settings)
    if name == ROOT:
        pair = authority.self_signed(profile, now)
    else:
        pair = authority.issue(home.signer(ROOT, now), profile, now)
    home.record("init", ROOT, pair.certificate, file=home.store.path_of(f"{name}.pem"))
    home.store.write(name, pair, passphrase=passphrase)


def _check_settings(store: Store, wanted: Settings) -> None:
    if not store.holds(_SETTINGS):
        if names := store.names():
            problem = f"is not empty ({names[0]}), and not a PKI's directory"
            raise PkiProblem(store.path, problem, "take an empty one, or one that is not there yet")
        return
    found = settings.decode(store.path_of(_SETTINGS), store.content(_SETTINGS))
    if found != wanted:
        fix = "give the options it was made with, or take another directory"
        raise PkiProblem(store.path_of(_SETTINGS), "was made with other settings", fix)
