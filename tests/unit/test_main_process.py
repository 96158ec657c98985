"""The main process of a job in front of who hides its end from its parent."""

from __future__ import annotations

import os
import subprocess

from jobworker.supervisor.keeper_link import End
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.main_process import MainProcess
from support.seized import seized
from support.waiting import wait_for_end

_AT_REST = 0.5


def reading() -> subprocess.Popen[bytes]:
    """A process that ends with 7 when its input does."""
    return subprocess.Popen(["/bin/sh", "-c", "read x; exit 7"], stdin=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.close()
    wait_for_end(process.pid)


def test_an_end_that_a_tracer_hides_keeps_the_loop_at_rest() -> None:
    loop, child = Loop(), reading()
    rounds: list[None] = []
    ends: list[End] = []

    def ended(how: End) -> None:
        ends.append(how)
        loop.stop()

    process = MainProcess(loop, os.pidfd_open(child.pid), ended, foreign=False)
    with seized(child.pid):
        end(child)
        process.begin()
        loop.after_each_round(lambda: rounds.append(None))
        loop.call_after(_AT_REST, loop.stop)
        loop.run()
        assert not ends
        # Once when it ended, and now and then.
        assert len(rounds) < 10
    loop.run()
    assert ends == [(os.CLD_EXITED, 7)]
    assert child.wait() == 7
    process.close()


def test_one_that_was_let_go_of_is_not_looked_at_again() -> None:
    loop, child = Loop(), reading()
    process = MainProcess(loop, os.pidfd_open(child.pid), lambda _: None, foreign=False)
    with seized(child.pid):
        end(child)
        process.begin()
        loop.call_after(0, loop.stop)
        loop.run()
        process.has_ended((os.CLD_EXITED, 7))
        process.close()
    loop.call_after(_AT_REST, loop.stop)
    loop.run()
    assert child.wait() == 7
