"""What is told of a directory whose disk cannot be looked for."""

from __future__ import annotations

import errno
import os

import pytest

from jobworker.errors import HostFault
from jobworker.jobs import MAX_STRING_BYTES
from jobworker.kernel.disk import NoDisk
from jobworker.supervisor import helper
from jobworker.supervisor.disks import Disks
from jobworker.supervisor.loop import Loop

pytestmark = pytest.mark.usefixtures("one_life")


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

    known.look(directory, "who", found)
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
        Disks(Loop(), "/").look("/" + letter * (MAX_STRING_BYTES - 1), "who", lambda: None)
    assert len(caught.value.operation) < 400
