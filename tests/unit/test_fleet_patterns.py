"""Host patterns as Ansible's documentation has them."""

from __future__ import annotations

import pytest

from jobworker.cli.fleet.inventory import Inventory
from jobworker.cli.fleet.patterns import select
from jobworker.errors import InvalidField

GROUPS = {
    "all": ("web1", "web2", "web3", "db1", "db2", "fe80::1"),
    "web": ("web1", "web2", "web3"),
    "db": ("db1", "db2"),
    "rack": ("db2", "web2", "db1"),
    "staging": ("web3", "db2"),
    "empty": (),
}
INVENTORY = Inventory(GROUPS, {name: {} for name in GROUPS["all"]})


@pytest.mark.parametrize(
    ("pattern", "hosts"),
    [
        ("all", "web1 web2 web3 db1 db2 fe80::1"),
        ("*", "web1 web2 web3 db1 db2 fe80::1"),
        ("web", "web1 web2 web3"),
        ("db2", "db2"),
        ("db:web1", "db1 db2 web1"),
        ("db,web1", "db1 db2 web1"),
        ("web*", "web1 web2 web3"),
        ("*1", "web1 db1 fe80::1"),
        ("web:&staging", "web3"),
        ("&staging:web", "web3"),
        ("web:!staging", "web1 web2"),
        ("!staging:web", "web1 web2"),
        ("web:db:&staging:!db2", "web3"),
        ("!web", "db1 db2 fe80::1"),
        ("&staging", "web3 db2"),
        ("web[0]", "web1"),
        ("web[-1]", "web3"),
        ("web[3]", ""),
        ("web[-4]", ""),
        ("web[0:1]", "web1 web2"),
        ("web[1:]", "web2 web3"),
        ("web[1-2]", "web2 web3"),
        ("web[0:1]:!web[0]", "web2"),
        ("rack", "db2 web2 db1"),
        ("rack[0]", "db2"),
        ("rack[-1]:web1", "db1 web1"),
        ("rack:&web:!web1", "web2"),
        ("web:rack[0:1]", "web1 web2 web3 db2"),
        ("&rack", "web2 db1 db2"),
        ("web[a-z]", ""),
        ("db[12]", ""),
        ("d[a-c]1", "db1"),
        ("~(web|db)2", "web2 db2"),
        ("~web[0-9]:!web2", "web1 web3"),
        ("fe80::1", "fe80::1"),
        ("fe80::1,db1", "fe80::1 db1"),
        (" web1 , db1 ", "web1 db1"),
        ("empty", ""),
    ],
)
def test_patterns(pattern: str, hosts: str) -> None:
    assert select(INVENTORY, pattern, "--limit").hosts == tuple(hosts.split())


@pytest.mark.parametrize("pattern", ["", ",", ":", " ", "!", "&", "!,"])
def test_no_host_is_not_all_hosts(pattern: str) -> None:
    with pytest.raises(InvalidField, match="names no host"):
        select(INVENTORY, pattern, "--limit")


def test_what_matches_nothing_is_told() -> None:
    assert select(INVENTORY, "web:!wbe2:nope*", "--limit").unmatched == ("!wbe2", "nope*")


def test_an_expression_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidField, match="no regular expression"):
        select(INVENTORY, "~web(", "--limit")
