"""Metrics for who has a password, and for nobody who has neither that nor a certificate."""

from __future__ import annotations

import base64
import http.client
from collections.abc import Iterator

import pytest

from support.agent import DEADLINE, running_agent
from support.scraping import Scraper

# A published pair: crypt_blowfish's own test.
PASSWORD, HASH = "U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
USERS = f"basic_auth_users: {{prometheus: {HASH}}}"


@pytest.fixture(scope="module")
def scraper() -> Iterator[Scraper]:
    with running_agent(f"metrics: {{listen: '127.0.0.1:0', {USERS}}}\n") as agent:
        yield Scraper(agent)


def header(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def ask(scraper: Scraper, *authorizations: str, tls: bool = True) -> http.client.HTTPResponse:
    """The answer to who has no certificate, and says this."""
    connection: http.client.HTTPConnection
    if tls:
        connection = http.client.HTTPSConnection(*scraper.address, timeout=DEADLINE, context=scraper.context())
    else:
        connection = http.client.HTTPConnection(*scraper.address, timeout=DEADLINE)
    connection.putrequest("GET", "/metrics")
    for each in authorizations:
        connection.putheader("Authorization", each)
    connection.endheaders()
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_the_right_password_is_enough_time_and_again(scraper: Scraper) -> None:
    for _ in range(3):
        assert ask(scraper, header("prometheus", PASSWORD)).status == 200
    assert ask(scraper, header("prometheus", PASSWORD).replace("Basic", "bAsIc")).status == 200


@pytest.mark.parametrize(
    "said",
    [
        header("prometheus", "U*V"),
        header("prometheus", ""),
        header("prometheus", f"{PASSWORD}\0"),
        header("", PASSWORD),
        header("grafana", PASSWORD),
        header("prometheus", HASH),
        header("prometheus\xff", PASSWORD),
        "Basic",
        "Basic ",
        "Basic %%%",
        "Basic cHJvbWV0aGV1cw==",
        f"Bearer {PASSWORD}",
        header("prometheus", "x" * 5000),
    ],
)
def test_anything_else_is_not(scraper: Scraper, said: str) -> None:
    # Known by then, which must make no difference.
    assert ask(scraper, header("prometheus", PASSWORD)).status == 200
    refused = ask(scraper, said)
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == 'Basic realm="jobworker metrics"'


def test_nothing_and_two_things_are_refused(scraper: Scraper) -> None:
    good = header("prometheus", PASSWORD)
    assert ask(scraper).status == 401
    assert ask(scraper, good, good).status == 401


def test_a_certificate_is_enough_still(scraper: Scraper) -> None:
    assert scraper.ask(role="reader")[0] == 200


def test_the_log_and_the_metrics_tell_no_password(scraper: Scraper) -> None:
    ask(scraper, header("prometheus", "a-secret"))
    assert "a-secret" not in scraper.agent.log()
    assert "a-secret" not in scraper.ask()[1]


def test_without_tls_a_password_is_asked_for_too() -> None:
    with running_agent(f"metrics: {{listen: '127.0.0.1:0', plain_http: true, {USERS}}}\n") as agent:
        plain = Scraper(agent)
        assert ask(plain, tls=False).status == 401
        assert ask(plain, header("prometheus", PASSWORD), tls=False).status == 200
