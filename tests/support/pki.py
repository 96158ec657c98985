"""A real PKI per session, copied for each test that changes it; requests and clocks to go with it.

`pki()` is what `worker-pki init` makes, with domain example.org and network 10.0.0.0/8, its keys encrypted.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from jobworker_pki import authority, home, profiles
from jobworker_pki.home import Home
from jobworker_pki.profiles import Profile
from jobworker_pki.settings import Settings
from support import certs

PASSPHRASE = b"correct horse battery staple"
SETTINGS = Settings("example.org", domains=("example.org",), networks=("10.0.0.0/8",))
WANTED = ("--trust-domain", "example.org", "--domain", "example.org", "--network", "10.0.0.0/8")


def worker_pki(*arguments: str, umask: int = 0o022, cwd: str | None = None) -> subprocess.Popen[str]:
    command = [os.path.join(os.path.dirname(sys.executable), "worker-pki"), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=umask,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )


def run(*arguments: str) -> tuple[int, str, str]:
    with worker_pki(*arguments) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def openssl(*arguments: str) -> str:
    result = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


def ask(_path: str) -> bytes:
    return PASSPHRASE


def never_asked(path: str) -> bytes:
    raise AssertionError(path)


@dataclass(frozen=True, slots=True)
class Pki:
    """The directory of a PKI, and beside it a file with the passphrase."""

    directory: str

    def path(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    @property
    def passphrase_file(self) -> str:
        return self.directory + ".passphrase"

    @contextmanager
    def opened(self) -> Iterator[Home]:
        with home.opened(self.directory, ask) as found:
            yield found

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """A command with --dir, and with the passphrase where it may be needed."""
        secret = () if arguments[0] in ("revoke", "show") else ("--passphrase-file", self.passphrase_file)
        return run(*arguments, "--dir", self.directory, *secret)

    def ok(self, *arguments: str) -> str:
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out

    def refused(self, *arguments: str) -> str:
        """The one line that a command which must fail says; and that it has changed nothing."""
        before = snapshot(self.directory)
        code, out, err = self.run(*arguments)
        assert (code != 0, out) == (True, "")
        assert snapshot(self.directory) == before
        return err

    def leaf(self, file: str, profile: Profile, ago: timedelta, key: str = "rsa4096") -> str:
        """A certificate as this PKI would have made it some time ago, for a key of the pool; its path."""
        path, private = self.path(file), certs.key(key)
        assert isinstance(private, rsa.RSAPrivateKey)
        with self.opened() as found:
            then = datetime.now(UTC) - ago
            signer = found.signer(home.INTERMEDIATE, then)
            made = authority.sign(signer, profile, private.public_key(), then)
            found.record("issue", home.INTERMEDIATE, made, file=path)
            chain = found.certificate(home.INTERMEDIATE)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        Path(path).write_bytes(authority.pem(made, chain))
        return path

    def certificate(self, *parts: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(Path(self.path(*parts)).read_bytes())


@functools.cache
def made() -> tuple[Pki, str, str]:
    """The session's PKI, and what `worker-pki init` printed and said."""
    root = tempfile.mkdtemp(prefix="jobworker-test-pki-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    pki = Pki(os.path.join(root, "pki"))
    Path(pki.passphrase_file).touch(0o600)
    Path(pki.passphrase_file).write_bytes(PASSPHRASE + b"\n")
    with worker_pki("init", pki.directory, *WANTED, "--passphrase-file", pki.passphrase_file, umask=0) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return pki, out, err


def copied(directory: Path) -> Pki:
    pki = made()[0]
    target = str(directory / "pki")
    shutil.copytree(pki.directory, target)
    shutil.copy(pki.passphrase_file, target + ".passphrase")
    return Pki(target)


def snapshot(directory: str) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and content of each file."""
    files = [os.path.join(top, name) for top, _, names in os.walk(directory) for name in names]
    return {
        path: (stat.S_IMODE(os.stat(path).st_mode), os.stat(path).st_mtime_ns, Path(path).read_bytes())
        for path in files
    }


def request(
    path: Path,
    *names: x509.GeneralName,
    key: str = "rsa4096",
    extra: tuple[x509.ExtensionType, ...] = (),
    algorithm: hashes.SHA256 | hashes.SHA512 | None = None,
) -> str:
    """A signing request for these names, with a key of the pool."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whoever")])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for each in extra:
        builder = builder.add_extension(each, critical=True)
    made = builder.sign(certs.key(key), algorithm or hashes.SHA256())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return str(path)


def host_profile(*names: str, days: int = 30) -> Profile:
    return profiles.server(names, timedelta(days=days))


def document() -> str:
    """docs/pki.md."""
    return (Path(__file__).parents[2] / "docs" / "pki.md").read_text()
