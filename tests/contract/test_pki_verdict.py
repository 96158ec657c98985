"""What `worker-pki show` says of a certificate is what the gateway does with it; openssl's are as good as ours."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from jobworker.errors import Unauthenticated
from jobworker.gateway.certificate_rules import CertificateRules
from jobworker.gateway.certificates import read_peer
from jobworker.identity import DEFAULT_ROLE_OID, Role
from jobworker.settings.schema import CertificateSettings
from jobworker_pki import reading
from support import certs
from support.pki import document, openssl, run

RULES = CertificateRules(CertificateSettings())
OF_TLS = {"foreign_ca", "self_signed", "signed_by_leaf"}  # the chain is TLS's to check


def gateways_reason(certificate: x509.Certificate) -> str | None:
    try:
        peer = read_peer(certs.Pair(certificate, certs.key()).cert_pem, DEFAULT_ROLE_OID, RULES)
        peer.check_dates(datetime.now(UTC).timestamp())
    except Unauthenticated as error:
        return error.reason
    return None


def tools_reason(certificate: x509.Certificate) -> str | None:
    try:
        bearer = reading.bearer(certificate, DEFAULT_ROLE_OID)
        reading.check_dates(certificate, datetime.now(UTC))
    except Unauthenticated as error:
        return error.reason
    return None if isinstance(bearer, reading.User) else "it is a server's"


@pytest.mark.parametrize("odd", certs.odd_clients())
def test_the_same_are_refused(odd: str) -> None:
    certificate = certs.odd_clients()[odd].certificate
    assert (gateways_reason(certificate) is None) == (odd in OF_TLS)
    assert (tools_reason(certificate) is None) == (odd in OF_TLS)


@pytest.mark.parametrize("name", ["writer", "reader"])
def test_the_same_are_accepted(name: str) -> None:
    certificate = certs.dev_pki().pair(name).certificate
    bearer = reading.bearer(certificate, DEFAULT_ROLE_OID)
    peer = read_peer(certs.dev_pki().pair(name).cert_pem, DEFAULT_ROLE_OID, RULES)
    assert isinstance(bearer, reading.User)
    assert (bearer.uri, bearer.role) == (peer.principal.uri, peer.principal.role)
    assert (bearer.trust_domain, bearer.name) == ("dev.jobworker.internal", name)


@pytest.fixture(scope="module")
def openssls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a user and a server, made by openssl from the fields in docs/pki.md, with keys of the pool."""
    directory = tmp_path_factory.mktemp("openssl")
    fields = re.search(r"^```ini\n(.*?)^```$", document(), re.DOTALL | re.MULTILINE)
    assert fields
    (directory / "conf").write_text(fields[1])
    for name, key in (("ca", "rsa4096"), ("user", "other4096"), ("server", "foreign4096")):
        (directory / f"{name}.key").write_bytes(
            certs.Pair(certs.dev_pki().pair("ca").certificate, certs.key(key)).key_pem
        )
        make = ["openssl", "req", "-new", "-config", "conf", "-key", f"{name}.key"]
        subprocess.run([*make, "-out", f"{name}.csr"], cwd=directory, check=True, capture_output=True)
        sign = ["openssl", "x509", "-req", "-in", f"{name}.csr", "-sha256", "-days", "7", "-extfile", "conf"]
        by = ["-signkey", "ca.key"] if name == "ca" else ["-CA", "ca.pem", "-CAkey", "ca.key"]
        out = ["-extensions", name, "-out", f"{name}.pem"]
        subprocess.run([*sign, *by, *out], cwd=directory, check=True, capture_output=True)
    return directory


def test_a_certificate_by_openssl_is_accepted(openssls: Path) -> None:
    user, ca = openssls / "user.pem", openssls / "ca.pem"
    assert openssl("verify", "-x509_strict", "-CAfile", str(ca), str(user)).endswith("OK\n")
    peer = read_peer(user.read_bytes(), DEFAULT_ROLE_OID, RULES)
    assert (peer.principal.uri, peer.principal.role) == ("spiffe://example.org/user/alice", Role.WRITER)
    assert run("show", str(user), "--ca", str(ca))[1].endswith(
        "accepts spiffe://example.org/user/alice as WRITER\n"
    )


def test_a_servers_certificate_by_openssl_is_accepted(openssls: Path) -> None:
    server, ca = str(openssls / "server.pem"), str(openssls / "ca.pem")
    assert run("show", server, "--ca", ca)[1].endswith("agent:     serves with it as localhost, 127.0.0.1\n")
