"""What one keeper's program leaves to the next: read to the number, also what an earlier version has left."""

from __future__ import annotations

import os

import pytest

from jobworker.wire import handover

ID = "k7f3-9m2q-x4tz-b1cd"


def left(text: str) -> int:
    memory = os.memfd_create("test")
    os.write(memory, text.encode())
    os.lseek(memory, 0, os.SEEK_SET)
    return memory


@pytest.mark.usefixtures("one_life")
@pytest.mark.parametrize("stdin", [0, 2])
def test_it_is_read_back(stdin: int) -> None:
    fds = [os.dup(0) for _ in range(4 + stdin)]
    link, out, err, pidfd, *rest = fds
    numbers = " ".join(map(str, (out, err, pidfd, 77, 1, 3, *rest)))
    state = handover.read(left(f"{handover.FORMAT} 42 {link}\n{ID} {numbers}"))
    held = state.held[ID]
    assert (state.supervisor, state.link_fd, held.pipes, held.pidfd) == (42, link, (out, err), pidfd)
    assert (held.pid, held.end, held.stdin) == (77, (1, 3), tuple(rest))
    assert set(state.descriptors()) == set(fds)
    assert not any(os.get_inheritable(fd) for fd in fds)


@pytest.mark.usefixtures("one_life")
def test_the_first_format_had_no_standard_input() -> None:
    out, err = os.dup(0), os.dup(0)
    state = handover.read(left(f"1 42 -1\n{ID} {out} {err} -1 0 0 0"))
    assert (state.held[ID].pipes, state.held[ID].stdin) == ((out, err), ())
    assert 1 in handover.READABLE
