"""`worker-pki dev`: what it makes, that it makes it once, and what it says of a set that is not right."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from jobworker.errors import PkiProblem
from jobworker.identity import DEFAULT_ROLE_OID
from jobworker_pki import dev
from support import certs
from support.certs import SERVER_AUTH, DevPki, Recipe
from support.pki import openssl, run, worker_pki

HOUR = timedelta(hours=1)
FILES = {f"{name}.{suffix}" for name in ("ca", "server", "writer", "reader") for suffix in ("pem", "key")}
SERVER = Recipe("localhost", uris=(), hosts=("localhost", "127.0.0.1", "::1"), usage=SERVER_AUTH, roles=())
CA = Recipe("old", uris=(), usage=None, roles=(), ca=True)


def snapshot(pki: DevPki) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time and content of each file: what a run that changes nothing leaves alone."""
    return {
        entry.name: (entry.inode(), entry.stat().st_mtime_ns, Path(entry.path).read_bytes())
        for entry in os.scandir(pki.directory)
    }


def ensure(pki: DevPki, wanted: dev.Wanted | None = None, *, renew: bool = False) -> dev.Outcome:
    return dev.ensure(pki.directory, wanted or dev.Wanted(), renew=renew, progress=lambda _text: None)


def refusal(pki: DevPki, wanted: dev.Wanted | None = None) -> PkiProblem:
    before = snapshot(pki)
    with pytest.raises(PkiProblem) as caught:
        ensure(pki, wanted)
    assert snapshot(pki) == before
    return caught.value


@pytest.fixture
def pki(tmp_path: Path) -> DevPki:
    return certs.dev_pki().copy(tmp_path / "pki")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[DevPki, list[str]]:
    """Made by two commands at once, under an umask that hides nothing; and what they printed."""
    directory = tmp_path_factory.mktemp("fresh") / "deep" / "pki"
    both = [
        worker_pki("dev", str(directory), "--host", "agent.test", "--host", "2001:db8::7", umask=0) for _ in "12"
    ]
    printed = []
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        printed.append(out)
    return DevPki(str(directory)), printed


def test_two_at_once_make_one_set(fresh: tuple[DevPki, list[str]]) -> None:
    pki, printed = fresh
    first, second = sorted(printed)
    assert f"{pki.directory}: made ca, server, writer, reader; CN=jobworker DEV CA" in first
    assert f"{pki.directory}: nothing to do" in second
    assert ensure(pki).made == ()


def test_files_and_modes(fresh: tuple[DevPki, list[str]]) -> None:
    pki, _ = fresh
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(pki.directory)}
    assert set(modes) == FILES
    assert {mode for name, mode in modes.items() if name.endswith(".key")} == {0o600}
    assert {mode for name, mode in modes.items() if name.endswith(".pem")} == {0o644}
    assert stat.S_IMODE(os.stat(pki.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.dirname(pki.directory)).st_mode) == 0o755


@pytest.mark.parametrize(
    ("name", "purpose", "other"),
    [
        ("server", "sslserver", "sslclient"),
        ("writer", "sslclient", "sslserver"),
        ("reader", "sslclient", "sslserver"),
    ],
)
def test_openssl_verifies_each_for_its_purpose_alone(
    fresh: tuple[DevPki, list[str]], name: str, purpose: str, other: str
) -> None:
    files = fresh[0].files(name)
    verify = ("verify", "-x509_strict", "-CAfile", files.ca, "-purpose")
    assert openssl(*verify, purpose, files.cert).endswith("pem: OK\n")
    assert "unsuitable certificate purpose" in openssl(*verify, other, files.cert)


@pytest.mark.parametrize("host", ["localhost", "agent.test", *dev._own_names()])
def test_openssl_verifies_the_servers_names(fresh: tuple[DevPki, list[str]], host: str) -> None:
    files = fresh[0].files("server")
    verify = ("verify", "-CAfile", files.ca, "-verify_hostname")
    assert openssl(*verify, host, files.cert).endswith("pem: OK\n")
    assert "hostname mismatch" in openssl(*verify, f"{host}.other.test", files.cert)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "2001:db8::7"])
def test_openssl_verifies_the_servers_addresses(fresh: tuple[DevPki, list[str]], address: str) -> None:
    files = fresh[0].files("server")
    verify = ("verify", "-CAfile", files.ca, "-verify_ip")
    assert openssl(*verify, address, files.cert).endswith("pem: OK\n")
    assert "IP address mismatch" in openssl(*verify, "127.0.0.9", files.cert)


def text_of(pki: DevPki, name: str) -> str:
    text = openssl("x509", "-in", pki.path(f"{name}.pem"), "-noout", "-text")
    return re.sub(r"\s+", " ", text).replace(" = ", "=")  # OpenSSL 3.2 writes CN=writer


@pytest.mark.parametrize(("name", "role"), [("writer", "WRITER"), ("reader", "READER")])
def test_what_openssl_reads_in_a_clients_certificate(
    fresh: tuple[DevPki, list[str]], name: str, role: str
) -> None:
    text = text_of(fresh[0], name)
    assert "Version: 3" in text
    assert "Public-Key: (4096 bit)" in text
    assert text.count("Signature Algorithm: sha256WithRSAEncryption") == 2
    assert f"Subject: CN={name} " in text
    assert "Basic Constraints: critical CA:FALSE" in text
    assert "Key Usage: critical Digital Signature X509v3" in text
    assert "Extended Key Usage: TLS Web Client Authentication X509v3" in text
    assert f"Subject Alternative Name: URI:spiffe://dev.jobworker.internal/user/{name} " in text
    assert f"{DEFAULT_ROLE_OID}: ..{role} " in text
    assert "Subject Key Identifier" in text
    assert "Authority Key Identifier" in text


def test_what_openssl_reads_in_the_servers_certificate(fresh: tuple[DevPki, list[str]]) -> None:
    text = text_of(fresh[0], "server")
    assert "Public-Key: (4096 bit)" in text
    assert "Extended Key Usage: TLS Web Server Authentication X509v3" in text
    assert "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1, " in text
    assert "DNS:agent.test, IP Address:2001:DB8:0:0:0:0:0:7" in text
    assert DEFAULT_ROLE_OID not in text


def test_what_openssl_reads_in_the_cas_certificate(fresh: tuple[DevPki, list[str]]) -> None:
    text = text_of(fresh[0], "ca")
    assert "Subject: CN=jobworker DEV CA" in text
    assert "Public-Key: (4096 bit)" in text
    assert "Basic Constraints: critical CA:TRUE, pathlen:0" in text
    assert "Key Usage: critical Certificate Sign, CRL Sign Signature" in text
    assert "Extended Key Usage" not in text


def test_a_leaf_cannot_issue(tmp_path: Path) -> None:
    pki = certs.dev_pki()
    files = certs.make(Recipe(), pki.pair("writer")).save(tmp_path, "grandchild")
    verdict = openssl("verify", "-CAfile", files.ca, "-untrusted", pki.path("writer.pem"), files.cert)
    assert "invalid CA certificate" in verdict


def test_lives(fresh: tuple[DevPki, list[str]]) -> None:
    def life(name: str) -> timedelta:
        certificate = fresh[0].pair(name).certificate
        return certificate.not_valid_after_utc - certificate.not_valid_before_utc

    skew = timedelta(minutes=5)
    assert life("ca") == timedelta(days=3650) + skew
    assert {life(name) for name in ("server", "writer", "reader")} == {timedelta(days=365) + skew}


def test_run_again_it_changes_nothing(pki: DevPki) -> None:
    before = snapshot(pki)
    code, out, err = run("dev", pki.directory)
    assert (code, err) == (0, "")
    assert out.startswith(f"{pki.directory}: nothing to do, the set is complete; CN=jobworker DEV CA")
    assert snapshot(pki) == before


@pytest.mark.parametrize("missing", ["writer.pem", "writer.key"])
def test_a_missing_file_is_made_by_the_same_ca(pki: DevPki, missing: str) -> None:
    before = snapshot(pki)
    os.unlink(pki.path(missing))
    Path(pki.path(".writer.key.new")).write_bytes(b"left by a run that was killed")
    assert ensure(pki).made == ("writer",)
    after = snapshot(pki)
    assert set(after) == FILES
    assert {name for name in FILES if after[name] != before[name]} == {"writer.pem", "writer.key"}
    assert openssl("verify", "-CAfile", pki.path("ca.pem"), pki.path("writer.pem")).endswith("OK\n")
    assert ensure(pki).made == ()


def test_modes_do_not_depend_on_the_umask(pki: DevPki) -> None:
    os.unlink(pki.path("reader.pem"))
    with worker_pki("dev", pki.directory, umask=0o177) as process:
        out, err = process.communicate()
    assert "made reader;" in out
    assert err == "making reader: an RSA-4096 key and its certificate\n"
    assert stat.S_IMODE(os.stat(pki.path("reader.pem")).st_mode) == 0o644
    assert stat.S_IMODE(os.stat(pki.path("reader.key")).st_mode) == 0o600


def test_killed_in_the_middle_the_next_run_completes(tmp_path: Path) -> None:
    pki = DevPki(str(tmp_path / "pki"))
    code = """
import os, signal, sys
from jobworker_pki import dev
def progress(text):
    if "writer" in text:
        os.kill(os.getpid(), signal.SIGKILL)
dev.ensure(sys.argv[1], dev.Wanted(), renew=False, progress=progress)
"""
    killed = subprocess.run([sys.executable, "-c", code, pki.directory], check=False)
    assert killed.returncode == -signal.SIGKILL
    ca = Path(pki.path("ca.pem")).read_bytes()
    assert ensure(pki).made == ("writer", "reader")
    assert Path(pki.path("ca.pem")).read_bytes() == ca
    assert set(snapshot(pki)) == FILES


def odd(pki: DevPki, name: str, recipe: Recipe, *, foreign: bool = False) -> None:
    certs.make(recipe, certs.foreign_ca() if foreign else pki.pair("ca")).save(pki.directory, name)


def swap(pki: DevPki, source: str, target: str) -> None:
    shutil.copyfile(pki.path(source), pki.path(target))


FAULTS: dict[str, tuple[str, str, Callable[[DevPki], object]]] = {
    "expired": ("server.pem", "expired on", lambda p: odd(p, "server", Recipe(begin=-2 * HOUR, end=-HOUR))),
    "early": ("server.pem", "not yet valid", lambda p: odd(p, "server", Recipe(begin=HOUR, end=2 * HOUR))),
    "foreign": ("server.pem", "not issued by this CA", lambda p: odd(p, "server", SERVER, foreign=True)),
    "short": ("server.pem", "2048 bits", lambda p: odd(p, "server", Recipe(key="rsa2048"))),
    "two roles": ("writer.pem", "cannot be read", lambda p: odd(p, "writer", Recipe(roles=(b"x", b"x")))),
    "nameless": ("server.pem", "does not name localhost", lambda p: odd(p, "server", Recipe(usage=SERVER_AUTH))),
    "p256": ("server.key", "no unencrypted RSA key", lambda p: odd(p, "server", Recipe(key="p256"))),
    "other key": ("writer.pem", "do not belong together", lambda p: swap(p, "reader.key", "writer.key")),
    "other pair": (
        "server.pem",
        "is not as asked for",
        lambda p: p.pair("writer").save(p.directory, "server"),
    ),
    "truncated": ("reader.pem", "no certificate in PEM", lambda p: os.truncate(p.path("reader.pem"), 700)),
    "empty": ("reader.pem", "no certificate in PEM", lambda p: os.truncate(p.path("reader.pem"), 0)),
    "no key": ("reader.key", "no unencrypted RSA key", lambda p: os.truncate(p.path("reader.key"), 700)),
    "open key": ("ca.key", "can be read by others", lambda p: os.chmod(p.path("ca.key"), 0o640)),
    "expired ca": (
        "ca.pem",
        "expired on",
        lambda p: certs.make(Recipe("old", ca=True, begin=-2 * HOUR, end=-HOUR)).save(p.directory, "ca"),
    ),
    "leaf as ca": ("ca.pem", "not as asked for", lambda p: certs.make(Recipe("leaf")).save(p.directory, "ca")),
    "no ca": ("ca.pem", "is missing, and server.pem hangs on it", lambda p: os.unlink(p.path("ca.pem"))),
    "no ca key": ("ca.key", "is missing, and server.pem hangs on it", lambda p: os.unlink(p.path("ca.key"))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_set_is_named_and_left_alone(pki: DevPki, fault: str) -> None:
    file, expected, spoil = FAULTS[fault]
    spoil(pki)
    problem = refusal(pki)
    assert problem.path == pki.path(file)
    assert expected in problem.problem
    assert "--renew" in problem.fix or problem.fix == f"chmod 600 {problem.path}"


def test_a_set_that_serves_less_than_asked_for(pki: DevPki) -> None:
    assert "does not name new.test, 10.1.2.3" in refusal(pki, dev.Wanted(hosts=("new.test", "10.1.2.3"))).problem
    assert refusal(pki, dev.Wanted(role_oid="1.3.6.1.4.1.99999.1")).path == pki.path("writer.pem")
    assert "other.test/user/writer" in refusal(pki, dev.Wanted(trust_domain="other.test")).problem


def test_renew_keeps_a_good_ca(pki: DevPki) -> None:
    os.truncate(pki.path("server.pem"), 10)
    before = snapshot(pki)
    assert ensure(pki, dev.Wanted(hosts=("new.test",)), renew=True).made == ("server", "writer", "reader")
    after = snapshot(pki)
    assert {name for name in FILES if after[name] == before[name]} == {"ca.pem", "ca.key"}
    assert ensure(pki, dev.Wanted(hosts=("new.test",))).made == ()


def test_renew_replaces_a_faulty_ca(pki: DevPki) -> None:
    os.unlink(pki.path("ca.key"))
    assert ensure(pki, renew=True).made == ("ca", "server", "writer", "reader")
    assert ensure(pki).made == ()


def test_a_directory_that_others_can_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    problem = refusal(DevPki(str(tmp_path)))
    assert problem.path == str(tmp_path)
    assert "can be changed by other users" in problem.problem


def test_a_path_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, out, err = run("dev", str(tmp_path / "file" / "pki"))
    assert (code, out) == (1, "")
    assert f"worker-pki: {tmp_path}/file" in err
    assert "cannot be used: " in err


def test_a_fifo_in_place_of_a_certificate_does_not_hang(pki: DevPki) -> None:
    os.unlink(pki.path("reader.pem"))
    os.mkfifo(pki.path("reader.pem"))
    with pytest.raises(PkiProblem, match=r"reader\.pem: holds no certificate"):
        ensure(pki)


def test_a_link_beside_is_not_written_through(pki: DevPki, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    os.unlink(pki.path("reader.key"))
    os.symlink(precious, pki.path(".reader.key.new"))
    os.symlink(precious, pki.path("reader.key"))
    os.unlink(pki.path("reader.pem"))
    assert ensure(pki).made == ("reader",)
    assert precious.read_text() == "precious"
    assert not os.path.islink(pki.path("reader.key"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--host", "a b"), "host: 'a b' is neither a host name nor an IP address"),
        (("--trust-domain", "A B"), "identity: 'spiffe://A B/user/writer' is not an identity"),
        (("--role-oid", "1.2"), "role-oid: '1.2' is not an object identifier"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    code, out, err = run("dev", str(tmp_path / "pki"), *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert not (tmp_path / "pki").exists()


def test_a_fault_is_one_line_and_exit_code_1(pki: DevPki) -> None:
    swap(pki, "reader.key", "writer.key")
    code, out, err = run("dev", pki.directory)
    assert (code, out) == (1, "")
    fix = "run again with --renew to have it made anew"
    assert err == f"worker-pki: {pki.path('writer.pem')}: certificate and key do not belong together; {fix}\n"


def test_help_teaches() -> None:
    code, out, _ = run("dev", "--help")
    assert code == 0
    assert "worker-pki dev .dev/pki" in out
    assert "--renew" in out
