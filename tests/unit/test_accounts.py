"""The host's users, from passwd(5) and group(5)."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

import pytest

from jobworker.errors import HostFault
from jobworker.supervisor import accounts
from jobworker.supervisor.accounts import Account

PASSWD = b"""\
root:x:0:0:root:/root:/bin/bash
broken:x:1
+nis::::::
minus:x:-1:5::/:/bin/sh
none:x:4294967295:5::/:/bin/sh
huge:x:99999999999:5::/:/bin/sh
words:x:one:5::/:/bin/sh
web:x:33:34:Web \xff:/srv:/bin/sh
web:x:99:99:not this one:/:/bin/sh
"""
GROUP = b"""\
root:x:0:
web:x:34:
deploy:x:50:ann,web
again:x:50:web
almost:x:51:webber,aweb
odd:x:no:web
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "passwd").write_bytes(PASSWD)
    (tmp_path / "group").write_bytes(GROUP)
    return str(tmp_path / "passwd"), str(tmp_path / "group")


def test_a_user_with_its_groups(files: tuple[str, str]) -> None:
    assert accounts.find("web", *files) == Account("web", 33, 34, (50,))
    assert accounts.find("root", *files) == Account("root", 0, 0, ())


@pytest.mark.parametrize("name", ["", "webber", "broken", "+nis", "minus", "none", "huge", "words", "x"])
def test_what_is_no_user(files: tuple[str, str], name: str) -> None:
    assert accounts.find(name, *files) is None


def test_files_that_cannot_be_read_or_are_too_large(tmp_path: Path, files: tuple[str, str]) -> None:
    with pytest.raises(HostFault, match=f"ENOENT: {tmp_path}/missing"):
        accounts.find("web", str(tmp_path / "missing"))
    with open(files[0], "ab") as passwd:
        passwd.truncate(9 * 1024 * 1024)
    with pytest.raises(HostFault, match="EFBIG"):
        accounts.find("web", *files)


def test_the_users_of_this_host() -> None:
    """As the C library has them."""
    met = []
    for entry in pwd.getpwall():
        if found := accounts.find(entry.pw_name):
            others = {group.gr_gid for group in grp.getgrall() if entry.pw_name in group.gr_mem}
            assert (found.uid, found.gid, set(found.groups)) == (entry.pw_uid, entry.pw_gid, others)
            met.append(found.name)
    assert {"root", "nobody"} <= set(met)
