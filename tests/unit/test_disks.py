"""What is told of a directory whose disk cannot be looked for."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.errors import HostFault
from jobworker.jobs import MAX_STRING_BYTES
from jobworker.kernel.disk import NoDisk
from jobworker.supervisor import accounts, helper
from jobworker.supervisor.disks import Disks
from jobworker.supervisor.loop import Loop

pytestmark = pytest.mark.usefixtures("one_life")

# Of every host.
USER = "daemon"


@pytest.mark.parametrize("letter", ["x", "\x7f"])
def test_a_path_as_long_as_can_be_is_told_of_at_once_and_in_short(letter: str) -> None:
    loop, told = Loop(), list[Exception]()
    known, directory = Disks(loop, "/"), "/" + letter * (MAX_STRING_BYTES - 1)

    def found() -> None:
        try:
            known.of(directory)
        except (HostFault, NoDisk) as error:
            told.append(error)
        loop.stop()

    known.look(directory, "", "who", found)
    loop.run()
    (error,) = told
    assert isinstance(error, NoDisk)
    assert "File name too long" in str(error)[:300] == str(error)


@pytest.mark.parametrize("letter", ["x", "\x7f"])
def test_one_for_which_there_is_no_helper_is_told_of_in_short(
    monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    def no_process(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(helper, "start_telling", no_process)
    with pytest.raises(HostFault) as caught:
        Disks(Loop(), "/").look("/" + letter * (MAX_STRING_BYTES - 1), "", "who", lambda: None)
    assert len(caught.value.operation) < 400


@pytest.fixture
def private() -> Iterator[Path]:
    """A directory that only one user of the host may enter."""
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        path = Path(directory, "private")
        path.mkdir(mode=0o700)
        (path / "file").touch()
        account = accounts.find(USER)
        assert account
        os.chown(path, account.uid, account.gid)
        yield path


def told_of(path: Path, user: str) -> str:
    """The number of its disk, or why there is none."""
    loop, told = Loop(), list[str]()
    known = Disks(loop, "/")

    def found() -> None:
        try:
            told.append(known.of(str(path)).number)
        except NoDisk as error:
            told.append(str(error).replace(str(path), "PATH"))
        loop.stop()

    known.look(str(path), user, "who", found)
    loop.run()
    return told[0]


@pytest.mark.root
def test_what_is_there_is_told_to_nobody_who_may_not_see_it(private: Path) -> None:
    there, absent = told_of(private / "file", ""), told_of(private / "absent", "")
    assert there == absent
    assert "Permission denied" in there
    assert told_of(private, "") == told_of(private.parent, "")


@pytest.mark.root
def test_the_user_whose_job_it_is_may_see_its_own(private: Path) -> None:
    assert told_of(private / "file", USER) == told_of(private.parent, "").replace(str(private.parent), "PATH")
    assert "No such file" in told_of(private / "absent", USER)
