"""`worker-pki init`: what it makes, once, and what it refuses."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jobworker.errors import PkiProblem
from jobworker_pki import home
from support import pki as support
from support.pki import (
    PASSPHRASE,
    SETTINGS,
    WANTED,
    Pki,
    ask,
    copied,
    never_asked,
    openssl,
    run,
    snapshot,
    worker_pki,
)

FILES = {"pki.json", "ca.pem", "index.jsonl"} | {
    f"{ca}.{suffix}" for ca in ("root", "intermediate") for suffix in ("pem", "key")
}


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return copied(tmp_path)


def ensure(pki: Pki) -> tuple[str, ...]:
    return home.ensure(pki.directory, SETTINGS, lambda: PASSPHRASE, ask, lambda _text: None)


def test_files_and_modes_under_an_umask_that_hides_nothing() -> None:
    pki, out, err = support.made()
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(pki.directory)}
    assert set(modes) >= FILES
    assert {modes[name] for name in FILES if name.endswith((".key", ".jsonl"))} == {0o600}
    assert {modes[name] for name in FILES if name.endswith((".pem", ".json"))} == {0o644}
    assert stat.S_IMODE(os.stat(pki.directory).st_mode) == 0o700
    assert "made root, intermediate" in out
    assert "root.key offline" in err
    assert PASSPHRASE.decode() not in out + err


def test_the_keys_are_encrypted() -> None:
    pki = support.made()[0]
    for ca in ("root", "intermediate"):
        content = Path(pki.path(f"{ca}.key")).read_text()
        assert content.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        opened = openssl("pkey", "-in", pki.path(f"{ca}.key"), "-passin", f"file:{pki.passphrase_file}", "-noout")
        assert opened == ""


def test_an_encrypted_key_is_expensive_to_guess() -> None:
    text = openssl("asn1parse", "-in", support.made()[0].path("root.key"))
    assert "PBKDF2" in text
    assert "hmacWithSHA256" in text
    assert "aes-256-cbc" in text
    (rounds,) = re.findall(r"prim: INTEGER +:([0-9A-F]+)", text)
    assert int(rounds, 16) == 600_000


def test_two_at_once_make_one_pki(tmp_path: Path) -> None:
    both = [worker_pki("init", str(tmp_path / "pki"), *WANTED, "--no-passphrase", umask=0o177) for _ in "12"]
    printed = sorted(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert "made root, intermediate" in printed[0]
    assert "nothing to do" in printed[1]
    assert stat.S_IMODE(os.stat(tmp_path / "pki").st_mode) == 0o700


@pytest.mark.parametrize("step", ["root", "intermediate"])
def test_killed_in_the_middle_the_next_run_completes(tmp_path: Path, step: str) -> None:
    program = """
import os, signal, sys
from jobworker_pki import home, settings
def progress(text):
    if sys.argv[2] in text:
        os.kill(os.getpid(), signal.SIGKILL)
home.ensure(sys.argv[1], settings.Settings("example.org"), lambda: None, None, progress)
"""
    directory = str(tmp_path / "pki")
    killed = subprocess.run([sys.executable, "-c", program, directory, step], check=False)
    assert killed.returncode == -signal.SIGKILL
    code, out, err = run("init", directory, "--trust-domain", "example.org", "--no-passphrase")
    assert code == 0, err
    assert "intermediate; agents" in out
    verdict = openssl("verify", "-CAfile", f"{directory}/ca.pem", f"{directory}/intermediate.pem")
    assert verdict.endswith("pem: OK\n")


def test_the_passphrase_is_asked_for_at_a_terminal_without_an_echo(pki: Pki) -> None:
    ours, theirs = pty.openpty()
    tool = os.path.join(os.path.dirname(sys.executable), "worker-pki")
    # In a session of its own, so that it does not take the terminal that the tests may run at.
    with subprocess.Popen(
        [tool, "crl", "--dir", pki.directory], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        heard = b""
        while not heard.endswith(b": "):  # the blank comes when the echo is off
            heard += os.read(ours, 4096)
        os.write(ours, PASSPHRASE + b"\n")
        with contextlib.suppress(OSError):  # EIO is the terminal's end
            while more := os.read(ours, 4096):
                heard += more
    os.close(ours)
    assert process.returncode == 0
    assert f"Passphrase of {pki.path('intermediate.key')}: ".encode() in heard
    assert PASSPHRASE not in heard
    assert b"0 revoked" in heard


def test_what_openssl_reads_in_the_cas() -> None:
    pki = support.made()[0]
    text = {
        ca: openssl("x509", "-in", pki.path(f"{ca}.pem"), "-noout", "-text") for ca in ("root", "intermediate")
    }
    assert "CA:TRUE, pathlen:1" in text["root"]
    assert "CA:TRUE, pathlen:0" in text["intermediate"]
    assert "X509v3 Name Constraints: critical" in text["intermediate"]
    for permitted in ("URI:example.org", "DNS:example.org"):
        assert permitted in text["intermediate"]
    assert "IP:" not in text["intermediate"]
    for each in text.values():
        assert "Public-Key: (4096 bit)" in each
        assert "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign" in each
    verdict = openssl("verify", "-x509_strict", "-CAfile", pki.path("ca.pem"), pki.path("intermediate.pem"))
    assert verdict.endswith("pem: OK\n")


def test_serial_numbers_are_random_and_of_159_bits() -> None:
    pki = support.made()[0]
    serials = {pki.certificate(f"{ca}.pem").serial_number for ca in ("root", "intermediate")}
    assert len(serials) == 2
    assert all(2**100 < serial < 2**159 for serial in serials)


def test_run_again_it_changes_nothing_and_asks_for_nothing(pki: Pki) -> None:
    os.unlink(pki.path("root.key"))
    before = snapshot(pki.directory)
    code, out, err = run("init", pki.directory, *WANTED)
    assert (code, err) == (0, "")
    assert "nothing to do" in out
    assert snapshot(pki.directory) == before


def test_an_interrupted_run_is_completed(pki: Pki) -> None:
    root = Path(pki.path("root.pem")).read_bytes()
    for file in ("intermediate.pem", "ca.pem"):
        os.unlink(pki.path(file))
    assert ensure(pki) == ("intermediate",)
    assert Path(pki.path("ca.pem")).read_bytes() == root
    verdict = openssl("verify", "-CAfile", pki.path("ca.pem"), pki.path("intermediate.pem"))
    assert verdict.endswith("pem: OK\n")


def test_without_the_root_key_it_cannot_be_completed(pki: Pki) -> None:
    for file in ("intermediate.pem", "root.key"):
        os.unlink(pki.path(file))
    with pytest.raises(PkiProblem, match=r"root\.key: is not here; bring the root's key back"):
        ensure(pki)


def test_other_settings_are_refused(pki: Pki) -> None:
    before = snapshot(pki.directory)
    code, _, err = run("init", pki.directory, "--trust-domain", "example.net")
    assert code == 1
    assert "pki.json: was made with other settings; give the options it was made with" in err
    assert snapshot(pki.directory) == before


@pytest.mark.parametrize("name", ["ca.pem", "notes.txt", ".hidden"])
def test_what_is_something_elses_is_not_taken_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "pki").mkdir(mode=0o755)
    (tmp_path / "pki" / name).touch()
    code, _, err = run("init", str(tmp_path / "pki"), *WANTED, "--no-passphrase")
    assert code == 1
    assert f"pki: is not empty ({name}), and not a PKI's directory; take an empty one" in err
    assert os.listdir(tmp_path / "pki") == [name]
    assert stat.S_IMODE(os.stat(tmp_path / "pki").st_mode) == 0o755


def test_an_empty_directory_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir(mode=0o755)
    # Of a run that was killed before there was anything.
    (tmp_path / "pki" / ".pki.json.new").touch()
    with pytest.raises(KeyboardInterrupt):
        home.ensure(str(tmp_path / "pki"), SETTINGS, lambda: None, ask, _interrupt)
    assert stat.S_IMODE(os.stat(tmp_path / "pki").st_mode) == 0o700
    assert os.listdir(tmp_path / "pki") == ["pki.json"]


def _interrupt(_text: str) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--trust-domain", "A B"), "trust-domain: 'A B' is none"),
        (("--trust-domain", "a", "--domain", "*.example.org"), "domain: '*.example.org' is no domain"),
        (("--trust-domain", "a", "--domain", "10.0.0.1"), "domain: '10.0.0.1' is no domain"),
        (("--trust-domain", "a", "--network", "10.0.0.1/8"), "network: 10.0.0.1/8 has host bits set"),
        (("--trust-domain", "a", "--role-oid", "2.5.29.1"), "role-oid: 2.5.29.1 belongs to X.509 itself"),
        ((), "Missing option '--trust-domain'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    code, out, err = run("init", str(tmp_path / "pki"), *options, "--no-passphrase")
    assert (code, out) == (2, "")
    assert expected in err
    assert not (tmp_path / "pki").exists()


def test_choices_are_told_in_the_same_line() -> None:
    code, _, err = run("issue", "user", "bob")
    assert code == 2
    assert "Missing option '--role'. Choose from: READER, WRITER; see `" in err


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        (b"correct horse\n", 0o640, "can be read by others; chmod 600"),
        (b"\nsecond line", 0o600, "holds no passphrase in its first line"),
        (b"short\n", 0o600, "fewer than 8 characters"),
    ],
)
def test_passphrase_files_that_will_not_do(tmp_path: Path, content: bytes, mode: int, expected: str) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(content)
    file.chmod(mode)
    code, _, err = run("init", str(tmp_path / "pki"), *WANTED, "--passphrase-file", str(file))
    assert code in (1, 2)
    assert expected in err
    assert not os.path.exists(tmp_path / "pki" / "root.key")


def test_a_wrong_passphrase_is_said(pki: Pki) -> None:
    Path(pki.passphrase_file).write_bytes(b"wrong horse battery\n")
    assert "intermediate.key: is not opened by this passphrase" in pki.refused("crl")


def test_a_directory_that_is_no_pki(tmp_path: Path) -> None:
    assert "is no directory; make one with worker-pki init DIR" in run("crl", "--dir", str(tmp_path / "none"))[2]
    code, _, err = run("crl", "--dir", str(tmp_path))
    assert code == 1
    assert "is not a PKI's directory; make one with worker-pki init DIR" in err
    assert os.listdir(tmp_path) == []


def test_without_a_terminal_the_passphrase_file_is_named(pki: Pki, tmp_path: Path) -> None:
    for command in (("crl", "--dir", pki.directory), ("init", str(tmp_path / "new"), *WANTED)):
        code, out, err = run(*command)
        assert (code, out) == (1, "")
        assert "there is no terminal to ask for it; give --passphrase-file FILE" in err


def test_a_pki_without_a_passphrase(pki: Pki) -> None:
    for file in ("intermediate.pem", "ca.pem"):
        os.unlink(pki.path(file))
    made = home.ensure(pki.directory, SETTINGS, lambda: None, ask, lambda _text: None)
    assert made == ("intermediate",)
    with home.opened(pki.directory, never_asked) as found:
        certificate = found.certificate("intermediate")
        assert found.signer("intermediate", certificate.not_valid_before_utc).certificate == certificate
