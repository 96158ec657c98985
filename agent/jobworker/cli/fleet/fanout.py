"""Visits to many hosts, so many at a time, until all were visited or too many have failed."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from queue import Empty, SimpleQueue

from jobworker.cli.fleet.outcome import Outcome, Status
from jobworker.cli.fleet.targets import Target
from jobworker.errors import InvalidField

_BUDGET = re.compile(r"([0-9]{1,6})(%?)")
_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Budget:
    """How many hosts may fail before no other is begun.

    Attributes:
        number: of hosts, or with `percent` of a hundred of them.
    """

    number: int
    percent: bool

    def exceeded(self, failed: int, total: int) -> bool:
        return failed * _PERCENT > self.number * total if self.percent else failed > self.number


def read_budget(text: str, field: str) -> Budget:
    """`3` or `10%`.

    Raises:
        InvalidField: the text is neither.
    """
    match = _BUDGET.fullmatch(text)
    if not match or (match[2] and int(match[1]) > _PERCENT):
        raise InvalidField(field, f"{text!r:.40} is neither a number of hosts nor a percentage", "3, or 10%")
    return Budget(int(match[1]), bool(match[2]))


class _Sign(Enum):
    """What is told besides outcomes."""

    THREAD_ENDED = auto()
    LEAVE = auto()


class Fanout:
    """Threads that take one host after the other. A visit that hangs holds up its own thread alone."""

    def __init__(self, targets: Iterable[Target], budget: Budget | None) -> None:
        """Prepare the visits; none is begun before `run`.

        Args:
            targets: the hosts, in the order in which they are begun.
            budget: of hosts that may fail; `None` for all.
        """
        self._budget = budget
        self._lock = threading.Lock()
        self._waiting = deque(targets)
        self._total = len(self._waiting)
        self._failed = 0
        self._closed = False
        self._under_way: dict[str, None] = {}
        self._ended: SimpleQueue[Outcome | OSError | _Sign] = SimpleQueue()
        self.outcomes: list[Outcome] = []

    def run(self, visit: Callable[[Target], Outcome], forks: int) -> Iterator[Outcome]:
        """How each visit went, as it has ended; ends early after `leave`.

        Args:
            visit: does what there is to do on a host; several threads call it.
            forks: so many at a time.

        Raises:
            OSError: a visit did; the others go on.
        """
        count = min(forks, self._total)
        for _ in range(count):
            # Daemons: one that is stuck must not keep this process from ending.
            threading.Thread(target=self._work, args=(visit,), daemon=True).start()
        while count:
            match self._ended.get():
                case _Sign.THREAD_ENDED:
                    count -= 1
                case _Sign.LEAVE:
                    return
                case Outcome() as outcome:
                    self.outcomes.append(outcome)
                    yield outcome
                case OSError() as error:
                    raise error

    def close(self) -> None:
        """Begin no other host."""
        with self._lock:
            self._closed = True

    def leave(self) -> None:
        """Begin no other host, and wait for none."""
        self.close()
        self._ended.put(_Sign.LEAVE)

    def exceeded(self) -> bool:
        """More hosts have failed than the budget has."""
        return self._budget is not None and self._budget.exceeded(self._failed, self._total)

    def rest(self) -> list[Outcome]:
        """What there is to say of hosts without an outcome."""
        with self._lock, contextlib.suppress(Empty):
            while True:
                if isinstance(outcome := self._ended.get_nowait(), Outcome):
                    self.outcomes.append(outcome)
        with self._lock:
            known = {outcome.host for outcome in self.outcomes}
            left = [Outcome(name, Status.LEFT) for name in self._under_way if name not in known]
            return left + [Outcome(target.name, Status.NOT_BEGUN) for target in self._waiting]

    def _work(self, visit: Callable[[Target], Outcome]) -> None:
        try:
            while target := self._next():
                outcome = _of(visit, target)
                self._count(outcome)
                self._ended.put(outcome)
        except OSError as error:
            self._ended.put(error)
        finally:
            self._ended.put(_Sign.THREAD_ENDED)

    def _next(self) -> Target | None:
        with self._lock:
            if self._closed or self.exceeded() or not self._waiting:
                return None
            target = self._waiting.popleft()
            self._under_way[target.name] = None
            return target

    def _count(self, outcome: Outcome) -> None:
        with self._lock:
            self._failed += outcome.status in (Status.FAILED, Status.UNREACHABLE)


def _of(visit: Callable[[Target], Outcome], target: Target) -> Outcome:
    """What comes of a visit, whatever goes wrong with it: each host counts in the end."""
    try:
        return visit(target)
    except OSError:
        # Of our own output, which ends the command.
        raise
    except Exception as error:  # noqa: BLE001 - the top loop of a thread
        return Outcome(target.name, Status.FAILED, type(error).__name__, str(error))
