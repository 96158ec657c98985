"""The main process of a job in front of who hides its end from its parent."""

from __future__ import annotations

import ctypes
import os
import signal

from jobworker.supervisor.keeper_link import End
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.main_process import MainProcess
from support.waiting import wait_for_end

_SEIZE = 0x4206
_AT_REST = 0.5


def traced() -> tuple[int, int]:
    """A process that has ended, which its tracer has not taken notice of; and that tracer."""
    libc = ctypes.CDLL(None, use_errno=True)
    told, tell = os.pipe()
    go, ended = os.pipe()
    if (main := os.fork()) == 0:
        os.close(ended)
        os.read(go, 1)
        os._exit(7)
    if (tracer := os.fork()) == 0:
        os.close(ended)
        os.write(tell, b"%d" % libc.ptrace(_SEIZE, main, 0, 0))
        signal.pause()
    assert os.read(told, 10) == b"0"
    for fd in (told, tell, go, ended):
        os.close(fd)
    wait_for_end(main)
    return main, tracer


def test_an_end_that_a_tracer_hides_keeps_the_loop_at_rest() -> None:
    loop = Loop()
    rounds: list[None] = []
    ends: list[End] = []

    def ended(end: End) -> None:
        ends.append(end)
        loop.stop()

    main, tracer = traced()
    process = MainProcess(loop, os.pidfd_open(main), ended, foreign=False)
    try:
        process.begin()
        loop.after_each_round(lambda: rounds.append(None))
        loop.call_after(_AT_REST, loop.stop)
        loop.run()
        assert not ends
        # Once when it ended, and now and then.
        assert len(rounds) < 10
    finally:
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)
    loop.run()
    assert ends == [(os.CLD_EXITED, 7)]
    process.reap()
    process.close()


def test_one_that_was_let_go_of_is_not_looked_at_again() -> None:
    loop = Loop()
    main, tracer = traced()
    process = MainProcess(loop, os.pidfd_open(main), lambda _: None, foreign=False)
    try:
        process.begin()
        loop.call_after(0, loop.stop)
        loop.run()
        process.has_ended((os.CLD_EXITED, 7))
        process.close()
    finally:
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)
    loop.call_after(_AT_REST, loop.stop)
    loop.run()
    assert os.waitpid(main, 0)[1] == 7 << 8
