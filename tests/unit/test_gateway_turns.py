"""In which order calls are worked on: a crowd holds up nobody else, and no single call holds up the crowd."""

# ruff: noqa: S311 - seeded, so that what fails fails again

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from jobworker.gateway import turns
from jobworker.gateway.turns import Turns

ANN, BOB = "spiffe://test/user/ann", "spiffe://test/user/bob"
DEADLINE = 60


class Crowd:
    """Calls that are worked on until they are told to end."""

    def __init__(self, *, of_pieces: bool = False) -> None:
        self.turns = Turns(of_pieces=of_pieces)
        self.begun: list[str] = []
        self._news = asyncio.Event()
        self._going: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, principal: str, *names: str) -> None:
        await self.come_soon(principal, *names)
        await self._settle()

    async def come_soon(self, principal: str, *names: str) -> None:
        for name in names:
            self._going[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._call(principal, name))
        for _ in range(3):
            await asyncio.sleep(0)

    async def _call(self, principal: str, name: str) -> None:
        async with self.turns.turn(principal):
            self.begun.append(name)
            self._news.set()
            await self._going[name].wait()

    async def wait_begun(self, number: int) -> None:
        while len(self.begun) < number:
            self._news.clear()
            await self._news.wait()

    async def end(self, *names: str) -> None:
        for name in names:
            self._going[name].set()
            await self._tasks.pop(name)
        await self._settle()

    async def go_away(self, *names: str) -> None:
        for name in names:
            self._tasks[name].cancel()
        for name in names:
            with pytest.raises(asyncio.CancelledError):
                await self._tasks.pop(name)
        await self._settle()

    async def _settle(self) -> None:
        """Have all do what they can."""
        for _ in range(40):
            await asyncio.sleep(0)


def play(scene: Callable[[Crowd], Awaitable[None]], *, of_pieces: bool = False) -> None:
    async def played() -> None:
        crowd = Crowd(of_pieces=of_pieces)
        async with asyncio.timeout(DEADLINE):
            await scene(crowd)
        assert not crowd.turns._lines

    asyncio.run(played())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that do not end by themselves while a test is looked at."""
    monkeypatch.setattr(turns, "_TURN_SECONDS", 2 * DEADLINE)
    monkeypatch.setattr(turns, "_PIECE_SECONDS", 2 * DEADLINE)
    monkeypatch.setattr(turns, "_PATIENCE_SECONDS", 2 * DEADLINE)


@pytest.mark.usefixtures("patient")
def test_few_at_a_time_and_in_their_order() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(ANN, "1", "2", "3", "4")
        assert crowd.begun == ["1", "2"]
        await crowd.end("2")
        assert crowd.begun == ["1", "2", "3"]
        await crowd.end("1", "3", "4")
        assert crowd.begun == ["1", "2", "3", "4"]

    play(scene)


@pytest.mark.usefixtures("patient")
def test_others_pass_a_crowd_by() -> None:
    async def scene(crowd: Crowd) -> None:
        names = [str(number) for number in range(250)]
        await crowd.come(ANN, *names)
        await crowd.come(BOB, "bob")
        assert crowd.begun == ["0", "1", "bob"]
        await crowd.end("bob", *names)

    play(scene)


def test_a_call_that_takes_long_holds_up_nobody() -> None:
    async def scene(crowd: Crowd) -> None:
        names = [str(number) for number in range(9)]
        await crowd.come(ANN, *names)
        await crowd.wait_begun(len(names))
        # And gives no turn back that it has no more.
        await crowd.end(*names[1:])
        await crowd.come(ANN, "a", "b", "c")
        await crowd.wait_begun(len(names) + 3)
        assert crowd.begun == [*names, "a", "b", "c"]
        await crowd.end("0", "a", "b", "c")

    play(scene)


def test_calls_that_have_taken_long_hold_up_nobody_who_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_TURN_SECONDS", 0)

    async def scene(crowd: Crowd) -> None:
        await crowd.come(ANN, "1", "2")
        await crowd.come(ANN, "3", "4", "5", "6")
        await crowd.wait_begun(6)
        assert crowd.begun == ["1", "2", "3", "4", "5", "6"]
        await crowd.end("1", "2", "3", "4", "5", "6")

    play(scene)


@pytest.mark.usefixtures("patient")
def test_who_goes_away_leaves_the_line() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(ANN, "1", "2", "3", "4", "5")
        await crowd.go_away("3", "1")
        assert crowd.begun == ["1", "2", "4"]
        await crowd.go_away("5")
        await crowd.end("2", "4")
        await crowd.come(ANN, "6", "7", "8")
        assert crowd.begun == ["1", "2", "4", "6", "7"]
        await crowd.end("6", "7", "8")

    play(scene)


@pytest.mark.usefixtures("patient")
def test_who_goes_away_as_its_turn_comes_hands_it_on() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(ANN, "1", "2", "3", "4")
        (line,) = crowd.turns._lines.values()
        third = line.waiting[0]
        crowd._going["1"].set()
        for _ in range(40):
            if third.done():
                break
            await asyncio.sleep(0)
        # The turn is given, and its owner gone before it hears of it.
        await crowd.go_away("3")
        await crowd.end("1")
        assert crowd.begun == ["1", "2", "4"]
        await crowd.end("2", "4")

    play(scene)


@pytest.mark.usefixtures("patient")
def test_calls_that_come_go_before_one_that_waits() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(ANN, "1", "2", "3")
        crowd._going["1"].set()
        others = []
        # One every few rounds, as grpc hands them over.
        for number in range(5):
            await crowd.come_soon(BOB + str(number), f"bob{number}")
            others.append(f"bob{number}")
        assert crowd.begun == ["1", "2", *others]
        await crowd.end("1", *others)
        assert crowd.begun[-1] == "3"
        await crowd.end("2", "3")

    play(scene)


@pytest.mark.usefixtures("patient")
def test_the_next_piece_is_not_kept_waiting_for_what_may_come() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(ANN, "1", "2", "3")
        crowd._going["1"].set()
        await crowd.come_soon(BOB, "bob")
        assert set(crowd.begun) == {"1", "2", "3", "bob"}
        await crowd.end("1", "2", "3", "bob")

    play(scene, of_pieces=True)


def test_pieces_that_wait_for_their_readers_hold_up_no_others() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(ANN, "1", "2", "3")
        await crowd.wait_begun(3)
        await crowd.end("1", "2", "3")

    play(scene, of_pieces=True)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_takes_long_and_goes_away_everybody_else_has_a_turn(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_TURN_SECONDS", 0.002)
    chance = random.Random(seed)

    async def call(crowd: Crowd, principal: str, done: set[int], number: int) -> None:
        async with crowd.turns.turn(principal):
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.004]))
        done.add(number)

    async def scene(crowd: Crowd) -> None:
        done: set[int] = set()
        tasks = []
        for number in range(150):
            tasks.append(asyncio.create_task(call(crowd, chance.choice([ANN, BOB]), done, number)))
            if not chance.randrange(3):
                await asyncio.sleep(chance.choice([0, 0.001]))
            if not chance.randrange(4):
                chance.choice(tasks).cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = {number for number, how in enumerate(ended) if isinstance(how, asyncio.CancelledError)}
        assert [how for how in ended if how and not isinstance(how, asyncio.CancelledError)] == []
        assert done | cancelled == set(range(150))
        assert len(done) > 75

    play(scene, of_pieces=bool(seed % 2))
