"""The rules of `worker-agent firewall` in a kernel: what one address may have, and that others notice nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.cli import firewall
from jobworker.cli.firewall import Bounds
from support import certs, gateway, network
from support.waiting import until

pytestmark = [pytest.mark.root, network.needs_nft]

PORT = 7443
NFT = "/usr/sbin/nft"
FLOODING, OTHER = "127.0.0.2", "127.0.0.3"
# Two hosts' networks of 64 bits.
ONE_64, ITS_OTHER, ANOTHER_64 = "fd00:0:0:1::1", "fd00:0:0:1::2", "fd00:0:0:2::1"
WIDE = Bounds(per_second=10_000, burst=10_000, connections=10_000)


@pytest.fixture(params=["127.0.0.1", "::1"], ids=["IPv4", "IPv6"])
def host(request: pytest.FixtureRequest) -> str:
    """Where the gateway listens."""
    return str(request.param)


@pytest.fixture
def running(host: str, tmp_path: Path) -> Iterator[gateway.Gateway]:
    """A gateway in a network of its own, which the test's thread is in as well."""
    listen = f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}"
    addresses = (f"{address}/64" for address in (ONE_64, ITS_OTHER, ANOTHER_64))
    with (
        network.namespace(*addresses),
        gateway.gateway(tmp_path, gateway.settings(str(tmp_path), listen=listen)) as started,
    ):
        yield started


def load(bounds: Bounds) -> None:
    text = firewall.rules(gateway.settings("/state", listen=f"0.0.0.0:{PORT}"), bounds)
    subprocess.run([NFT, "-f", "-"], input=text, text=True, check=True)


def counted() -> dict[str, int]:
    listed = subprocess.run([NFT, "-j", "list", "counters"], capture_output=True, check=True).stdout
    counters = (each["counter"] for each in json.loads(listed)["nftables"] if "counter" in each)
    return {each["name"]: each["packets"] for each in counters}


@contextlib.contextmanager
def connecting(source: str, host: str, number: int) -> Iterator[list[socket.socket]]:
    """So many connections from one address, begun at once; over loopback each is there at once, or dropped."""
    with contextlib.ExitStack() as held:
        begun = [held.enter_context(socket.socket(socket.getaddrinfo(host, PORT)[0][0])) for _ in range(number)]
        for each in begun:
            each.setblocking(False)
            each.bind((source, 0))
            assert each.connect_ex((host, PORT)) in (errno.EINPROGRESS, errno.ECONNREFUSED, 0)
        yield begun


def connected(sockets: list[socket.socket]) -> int:
    found = 0
    for each in sockets:
        with contextlib.suppress(OSError):
            each.getpeername()
            found += 1
    return found


def shakes_hands(source: str, host: str) -> bool:
    files = certs.dev_pki().files("reader")
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, PORT), gateway.DEADLINE, (source, 0)) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return secure.version() == "TLSv1.3"


def sources(host: str) -> tuple[str, str]:
    return (ONE_64, ANOTHER_64) if ":" in host else (FLOODING, OTHER)


@pytest.mark.usefixtures("running")
def test_without_rules_any_number_connects(host: str) -> None:
    flooding, _ = sources(host)
    with connecting(flooding, host, 200) as begun:
        assert connected(begun) == 200


@pytest.mark.usefixtures("running")
def test_one_address_connects_at_a_pace_and_another_as_ever(host: str) -> None:
    flooding, other = sources(host)
    load(Bounds(per_second=1, burst=5, connections=1_000))
    begun_at = time.monotonic()
    with connecting(flooding, host, 200) as begun:
        # As many more as there were seconds; each of those that were dropped is tried again.
        passed = connected(begun)
        assert 5 <= passed <= 5 + math.ceil(time.monotonic() - begun_at)
        assert all(shakes_hands(other, host) for _ in range(5))
        assert counted()["too_often"] >= 200 - passed
        assert counted()["too_many"] == 0


@pytest.mark.usefixtures("running")
def test_one_address_has_so_many_connections_and_another_its_own(host: str) -> None:
    flooding, other = sources(host)
    load(Bounds(per_second=10_000, burst=10_000, connections=10))
    with connecting(flooding, host, 30) as begun:
        assert connected(begun) == 10
        refused = [each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for each in begun]
        assert refused.count(errno.ECONNREFUSED) == 20
        assert counted() == {"too_often": 0, "too_many": 20}
        assert shakes_hands(other, host)
    # They are closed, and so is each of these again.
    until(lambda: lets_in(flooding, host), True)


def lets_in(source: str, host: str) -> bool:
    try:
        return shakes_hands(source, host)
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize("host", ["::1"], indirect=True)
@pytest.mark.usefixtures("running")
def test_all_addresses_of_a_64_are_one(host: str) -> None:
    load(Bounds(per_second=10_000, burst=10_000, connections=10))
    with connecting(ONE_64, host, 6) as some, connecting(ITS_OTHER, host, 6) as others:
        assert connected(some) + connected(others) == 10
        assert shakes_hands(ANOTHER_64, host)


@pytest.mark.parametrize("trusted", [(), ("127.0.0.2/31", "127.0.0.0/30", "fd00:0:0:1::/64")])
@pytest.mark.usefixtures("running")
def test_who_is_trusted_is_not_bound(host: str, trusted: tuple[str, ...]) -> None:
    flooding, _ = sources(host)
    load(Bounds(per_second=1, burst=1, connections=1, trusted=trusted))
    with connecting(flooding, host, 50) as begun:
        assert connected(begun) == (50 if trusted else 1)


@pytest.mark.parametrize("host", ["127.0.0.1"], indirect=True)
@pytest.mark.usefixtures("running")
def test_loaded_again_they_take_the_place_of_what_was_there(host: str) -> None:
    other = "table inet other { chain input { type filter hook input priority 5; tcp dport 9 drop; }; }"
    subprocess.run([NFT, other], check=True)
    for connections in (1, 3):
        load(Bounds(per_second=10_000, burst=10_000, connections=connections))
    with connecting(FLOODING, host, 10) as begun:
        assert connected(begun) == 3
    assert "dport 9 drop" in subprocess.check_output([NFT, "list", "ruleset"], text=True)
    subprocess.run([NFT, "delete", "table", "inet", firewall.TABLE], check=True)
    assert firewall.TABLE not in subprocess.check_output([NFT, "list", "ruleset"], text=True)


@pytest.mark.parametrize("host", ["127.0.0.1"], indirect=True)
@pytest.mark.usefixtures("running")
def test_open_connections_stay_when_rules_come(host: str) -> None:
    with connecting(FLOODING, host, 20) as begun:
        load(Bounds(per_second=1, burst=1, connections=1))
        assert connected(begun) == 20
        # What is sent on them arrives: the gateway answers what is no TLS by closing.
        begun[0].setblocking(True)
        begun[0].settimeout(gateway.DEADLINE)
        begun[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert begun[0].recv(1) in (b"", b"\x15")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    program = os.path.join(os.path.dirname(sys.executable), "worker-agent")
    return subprocess.run([program, "firewall", *words], capture_output=True, text=True, check=False)


def test_the_command_makes_what_nft_takes(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    tls = "tls: {ca: /ca.pem, cert: /cert.pem, key: /key.pem}"
    config.write_text(f"state_dir: /state\nlisten: 0.0.0.0:7443\nmetrics: {{listen: '[::]:7444'}}\n{tls}\n")
    done = command(f"--config={config}", "--connections=50", "--trust=10.0.0.0/8", "--trust=2001:db8::1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "tcp dport { 7443, 7444 } ct state new" in done.stdout
    with network.namespace():
        subprocess.run([NFT, "--check", "-f", "-"], input=done.stdout, text=True, check=True)
        subprocess.run([NFT, "-f", "-"], input=done.stdout, text=True, check=True)
        ruleset = subprocess.check_output([NFT, "list", "ruleset"], text=True)
    for words in ("rate over 20/second burst 40 packets", "ct count over 50", "10.0.0.0/8", "2001:db8::1"):
        assert words in ruleset


@pytest.mark.parametrize(
    ("listen", "words", "problem"),
    [
        ("0.0.0.0:0", [], "listen: 0.0.0.0:0 is for any free port"),
        ("0.0.0.0:7443", ["--trust=10.0.0.1/8"], "trust: 10.0.0.1/8 has host bits set; for example 10.0.0.0/8"),
        ("0.0.0.0:7443", ["--trust=ten"], "trust: 'ten' does not appear to be an IPv4 or IPv6 network"),
        ("0.0.0.0:7443", ["--trust=1.1.1.1 } drop; { 1.1.1.1"], "trust: '1.1.1.1 } drop; { 1.1.1.1' does not"),
        ("nowhere", [], "listen: 'nowhere' is not ADDRESS:PORT"),
    ],
)
def test_what_it_cannot_make_rules_of_it_refuses(
    tmp_path: Path, listen: str, words: list[str], problem: str
) -> None:
    config = tmp_path / "agent.yaml"
    tls = "tls: {ca: /ca.pem, cert: /cert.pem, key: /key.pem}"
    config.write_text(f"state_dir: /state\nlisten: {listen}\n{tls}\n")
    done = command(f"--config={config}", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
