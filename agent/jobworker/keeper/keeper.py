"""The keeper: the supervisor's parent, which holds what must not die with it.

It is handed the read ends of each job's pipes before the job is made, and the job's pidfd after; of a standard
input that stays open the write end, and the file of what waits to go into it. When the supervisor dies, nothing
happens to the jobs: their pipes have a reader, their input has no end, and as a child subreaper (prctl(2)) the
keeper inherits and reaps their processes. It starts the supervisor again and hands everything back. It does
so little that it hardly ever changes and has next to nothing to fail at.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

from jobworker.keeper.parking import PIDFD, STDERR, STDIN_FILE, STDIN_PIPE, STDOUT, Parking
from jobworker.keeper.upgrade import PATIENCE, Upgrade
from jobworker.wire import handover, keeping, service_manager, sockets
from jobworker.wire.handover import Held

# Between two starts of a supervisor that dies before it serves, or for which there is no process, in seconds.
_PAUSE = 0.5
_ENDING = (signal.SIGTERM, signal.SIGINT)
# When all has ended, what helpers of the supervisor still have to write gets so long.
_HELPERS_SECONDS = 5.0
# Of processes that have ended, before something else is done: a job may make them as fast as they are reaped.
_MOST_REAPED = 256
# Sent by a service manager that starts another keeper right after; jobs are left to that one.
_LEAVING = signal.SIGUSR1
# The supervisor's, to read files and code anew. Who sends one may know of no other process than this one.
_PASSED_ON = (signal.SIGHUP, signal.SIGUSR2)
_HEEDED = (*_ENDING, _LEAVING, *_PASSED_ON)
# Python ignores these two in itself; a program that it starts should not.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)


# As HOLD_STDIN has them.
_STDIN = (STDIN_PIPE, STDIN_FILE)

# A process that asks for it (ptrace(2), PTRACE_TRACEME) is traced by its parent, which is told of its stops too.
_ENDS = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)


class Keeper:
    """Runs until the supervisor ends by itself.

    Args:
        own: the command line that started this program, to execute it anew for an upgrade.
        supervisor: the supervisor's.
        ready_fd: for the first supervisor, which says there when it serves.
    """

    def __init__(self, own: Sequence[str], supervisor: Sequence[str], ready_fd: int | None) -> None:
        self._upgrade = Upgrade(own)
        self._command = supervisor
        self._ready_fd = ready_fd
        self._parking = Parking()
        self._held: dict[str, Held] = self._parking.take_back()
        self._job_of: dict[int, str] = {}
        self._learn_jobs()
        # More processes may have ended than were reaped.
        self._may_reap = False
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._supervisor = 0
        self._was_ready = False
        # Until when nothing is started, since the last try has failed.
        self._again_at: float | None = None
        self._complaint = ""
        self._ending: signal.Signals | None = None
        self._link: socket.socket | None = None
        self._wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        for signum in (signal.SIGCHLD, *_HEEDED):
            signal.signal(signum, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)

    def _on_signal(self, signum: int, _: object) -> None:
        # Comes between any two instructions, and may not raise, which would be the keeper's end.
        if signum in _PASSED_ON:
            self._signal_supervisor(signum)
        # Nobody comes for the jobs where nothing is stored.
        elif signum in _ENDING or (signum == _LEAVING and self._parking):
            self._ending = signal.SIGUSR1 if signum == _LEAVING else signal.SIGTERM
            service_manager.tell("STOPPING=1")
            self._end_supervisor()

    def _end_supervisor(self) -> None:
        if self._ending:
            self._signal_supervisor(self._ending)

    def _signal_supervisor(self, signum: int) -> None:
        # One that is starting would only die of it, and leave the jobs to another that knows of nothing.
        if self._supervisor and self._was_ready:
            with contextlib.suppress(OSError):
                os.kill(self._supervisor, signum)

    def resume(self, state_fd: int) -> None:
        """Go on from where this process was before it executed itself anew."""
        state = handover.read(state_fd)
        self._supervisor, self._held = state.supervisor, state.held
        self._learn_jobs()
        self._was_ready = bool(state.supervisor)
        if state.link_fd >= 0:
            self._link = socket.socket(fileno=state.link_fd)
        # What waited for its handler came to that before a supervisor was known.
        self._end_supervisor()

    def _learn_jobs(self) -> None:
        """Know from now on which job a process that ends is the main one of."""
        running = (item for item in self._held.items() if item[1].end == keeping.RUNNING)
        self._job_of = {held.pid: job_id for job_id, held in running}

    def run(self) -> int:
        """Keep until the supervisor has ended for good; returns its exit status."""
        status = self._go_on()
        while status is None:
            self._wait()
            self._say_unsent()
            self._parking.flush()
            self._listen()
            status = self._go_on()
        self._upgrade.kill_trial()
        if self._ending == signal.SIGTERM:
            self._see_helpers_end()
        self._parking.finish()
        return status

    def _see_helpers_end(self) -> None:
        """Once nothing is left of the agent, the service manager removes its cgroup as well."""
        poll, until = select.poll(), time.monotonic() + _HELPERS_SECONDS
        poll.register(self._wakeup, select.POLLIN)
        with contextlib.suppress(ChildProcessError):
            while (left := until - time.monotonic()) > 0:
                while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                    pass
                poll.poll(left * 1000)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        self._parking.register(poll)
        if self._link:
            poll.register(self._link, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        # Nothing tells when the host has a process to spare, or the service manager is back.
        now = time.monotonic() if self._may_reap else None
        due = [at for at in (self._again_at, self._parking.again_at, self._upgrade.late_at, now) if at is not None]
        poll.poll(max(0.0, min(due) - time.monotonic()) * 1000 if due else None)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)

    def _go_on(self) -> int | None:
        """Reap, and start what is due; the exit status if there is nothing to go on with."""
        # First of all, while there is no supervisor too: it may lack the process that an unreaped one is.
        status = self._reap()
        if self._again_at is not None and time.monotonic() >= self._again_at:
            self._again_at = None
        if self._upgrade.late_at is not None and time.monotonic() >= self._upgrade.late_at:
            self._complain("cannot be upgraded", f"the new code has not proven itself within {PATIENCE:.0f} s")
            self._upgrade.kill_trial()
        if status is None and not self._supervisor and self._again_at is not None and self._ending == _LEAVING:
            # The next keeper finds everything in the store, and may have more luck.
            return 0
        if status is None and self._again_at is None:
            if not self._supervisor:
                return self._start_supervisor()
            self._go_on_upgrading()
        return status

    def _start_supervisor(self) -> int | None:
        """Start one; the exit status if that fails and nothing needs it."""
        try:
            self._supervisor, self._link = self._spawn()
        except OSError as error:
            # Told to stop, this one stays: who goes now leaves jobs behind that nobody reads, ends, or waits for.
            without = ", and only that can end the jobs" if self._ending else ""
            self._complain(f"cannot start a supervisor{without}", error)
            return self._put_off_start(1)
        self._complaint = ""
        self._unsent.clear()
        if self._ready_fd is not None:
            os.close(self._ready_fd)
            self._ready_fd = None
        return None

    def _spawn(self) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*self._command, "--link-fd", str(theirs.fileno())]
        if self._parking:
            command += ["--parked", "yes"]
        theirs.set_inheritable(True)
        if self._ready_fd is not None:
            command += ["--ready-fd", str(self._ready_fd)]
            os.set_inheritable(self._ready_fd, True)
        with theirs:
            try:
                pid = os.posix_spawn(command[0], command, os.environ, setsigdef=_IGNORED)
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return pid, ours

    def _put_off_start(self, status: int) -> int | None:
        if not self._held:
            # It can't start, and nothing needs it: whoever started us shall know.
            return status
        self._again_at = time.monotonic() + _PAUSE
        return None

    def _complain(self, what: str, error: OSError | str) -> None:
        """Say in the log why something is tried again; once, until there is another reason."""
        line = f"keeper: {what}: {error}\n"
        if line != self._complaint:
            self._complaint = line
            priority = f"<{service_manager.PRIORITIES['error']}>" if service_manager.reads_priorities() else ""
            sys.stderr.write(f"{priority}{line}")

    def _listen(self) -> None:
        """Take in all that the supervisor has said."""
        while self._link:
            try:
                data, fds, _ = sockets.receive(self._link, keeping.SIZE)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", sockets.Descriptors()
            with fds:
                if data:
                    self._apply(*keeping.unpack(data)[:2], fds)
                else:
                    self._link.close()
                    self._link = None

    def _apply(self, kind: int, job_id: str, fds: sockets.Descriptors) -> None:
        held = self._held.get(job_id)
        if kind == keeping.HOLD_PIPES and held is None:
            self._held[job_id] = held = Held(*fds.take())
            self._parking.park(job_id, STDOUT, held.pipes[0])
            self._parking.park(job_id, STDERR, held.pipes[1])
        elif kind == keeping.HOLD_PROCESS and held and len(fds) == 1:
            (held.pidfd,) = fds.take()
            held.pid = sockets.pid_of(held.pidfd)
            self._job_of[held.pid] = job_id
            self._parking.park(job_id, PIDFD, held.pidfd)
        elif kind == keeping.HOLD_STDIN and held and not held.stdin and len(fds) == len(_STDIN):
            held.stdin = fds.take()
            for name, fd in zip(_STDIN, held.stdin, strict=True):
                self._parking.park(job_id, name, fd)
        elif kind == keeping.LET_GO_STDIN and held:
            self._let_go_stdin(job_id, held)
        elif kind == keeping.RELEASE and held:
            self._release(job_id, held)
        elif kind == keeping.HAND_BACK:
            self._hand_back()
        elif kind == keeping.READY:
            self._was_ready = True
            service_manager.tell("READY=1")
            self._end_supervisor()
        elif kind == keeping.UPGRADE:
            self._upgrade.is_due = True

    def _release(self, job_id: str, held: Held) -> None:
        self._let_go_stdin(job_id, held)
        self._parking.release(job_id, STDOUT, STDERR, PIDFD)
        self._held.pop(job_id).close()
        if self._job_of.get(held.pid) == job_id:
            del self._job_of[held.pid]

    def _let_go_stdin(self, job_id: str, held: Held) -> None:
        """The job finds the end of its input when nobody holds the write end any more."""
        if held.stdin:
            self._parking.release(job_id, *_STDIN)
            for fd in held.stdin:
                os.close(fd)
            held.stdin = ()

    def _hand_back(self) -> None:
        """Say all that is held; nothing is let go of meanwhile, since who asked waits for it all."""
        for job_id, held in self._held.items():
            self._say(keeping.pack(keeping.HELD, job_id, held.end), held.outputs())
            if held.stdin:
                self._say(keeping.pack(keeping.HELD_STDIN, job_id), held.stdin)
        self._say(keeping.pack(keeping.HELD_ALL))

    def _reap(self) -> int | None:
        """Reap what has ended, if not all of it; the supervisor's status if that is final."""
        self._may_reap = False
        with contextlib.suppress(ChildProcessError):
            for _ in range(_MOST_REAPED):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return None
                if (status := self._bury(ended)) is not None:
                    return status
            self._may_reap = True
        return None

    def _bury(self, ended: os.waitid_result) -> int | None:
        if ended.si_code not in _ENDS:
            os.waitid(os.P_PID, ended.si_pid, os.WSTOPPED | os.WNOHANG)
            return None
        was_supervisor, was_trial = ended.si_pid == self._supervisor, self._upgrade.is_trial(ended.si_pid)
        # What a supervisor that has died has said of it is known first: then its id is another process's.
        self._listen()
        if was_supervisor:
            # Before it is reaped, and its id another process's: a signal that is passed on may come here.
            self._supervisor = 0
        os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)
        if was_supervisor:
            return self._supervisor_ended(ended.si_code, ended.si_status)
        if was_trial:
            self._upgrade.trial_ended(ended.si_code, ended.si_status)
        else:
            self._job_ended(ended.si_pid, (ended.si_code, ended.si_status))
        return None

    def _supervisor_ended(self, code: int, status: int) -> int | None:
        # What was said before it died still counts: a job may have been made on the strength of it. Nothing can be
        # said any more, so that no process executes a command that is not known here.
        if self._link:
            self._link.shutdown(socket.SHUT_RD)
        self._listen()
        if code == os.CLD_EXITED and status == 0:
            return 0
        had_served, self._was_ready = self._was_ready, False
        return None if had_served else self._put_off_start(status or 1)

    def _job_ended(self, pid: int, end: tuple[int, int]) -> None:
        if job_id := self._job_of.pop(pid, ""):
            self._held[job_id].end = end
            self._say(keeping.pack(keeping.ENDED, job_id, end))

    def _say(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        self._unsent.append((message, fds))
        self._say_unsent()

    def _say_unsent(self) -> None:
        with contextlib.suppress(OSError):
            while self._unsent and self._link:
                sockets.send(self._link, *self._unsent[0])
                self._unsent.popleft()

    # Upgrades.

    def _go_on_upgrading(self) -> None:
        try:
            if self._upgrade.is_due and self._upgrade.late_at is None:
                self._upgrade.begin_trial()
            # To the next program a supervisor is one that serves.
            if self._upgrade.is_proven and self._was_ready and not self._unsent and not self._parking.pending:
                self._execute_anew()
        except OSError as error:
            self._complain("cannot be upgraded", error)
            self._again_at = time.monotonic() + _PAUSE

    def _execute_anew(self) -> None:
        """Execute this program as it is now: same pid, children and descriptors.

        Raises:
            OSError: it could not be.
        """
        # Their handlers are gone for a moment; what comes then waits until they are back.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        try:
            # What this program was told to do the next one would not know of.
            if self._link and self._ending is None:
                self._upgrade.execute(handover.State(self._supervisor, self._link.fileno(), self._held))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)
