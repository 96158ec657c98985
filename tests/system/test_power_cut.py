"""What a power cut may leave: files that were renamed before they were flushed are empty."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobworker.wire import messages
from support.link import CALLER
from support.root_side import RootSide, root_side
from support.strace import attached, needs_strace

pytestmark = pytest.mark.root


@pytest.mark.parametrize("left", [lambda _: b"", lambda good: bytes(len(good)), lambda good: good[:100]])
def test_the_record_that_was_flushed_last_is_taken_in_place_of_a_broken_one(
    own_side: RootSide, left: Callable[[bytes], bytes]
) -> None:
    link = own_side.link(subscribe=True)
    record = link.wait_ended(link.start("/bin/echo", "hi").job_id)
    directory = Path(own_side.state_dir, "jobs", record.job_id)
    current = (directory / "job.json").read_bytes()
    own_side.wait_for(lambda: (directory / "flushed.json").read_bytes() == current)
    (directory / "job.json.cut").write_bytes(left(current))
    (directory / "job.json.cut").rename(directory / "job.json")
    own_side.restart()
    link = own_side.link(subscribe=True)
    assert link.read_log(link.inspect(record.job_id)) == b"hi\n"
    # The flusher, which is told of jobs in their order, does not put the broken one in its place.
    other = Path(own_side.state_dir, "jobs", link.wait_ended(link.start("/bin/true").job_id).job_id)
    own_side.wait_for(lambda: os.stat(other / "job.json").st_ino == os.stat(other / "flushed.json").st_ino)
    assert (directory / "flushed.json").read_bytes() == current
    link.ask(messages.DeleteJob(CALLER, record.job_id))
    own_side.wait_for(lambda: not directory.exists())


def test_what_a_life_has_not_brought_to_the_disk_the_next_one_does(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    running = link.start("/bin/sleep", "1000")
    ended = link.wait_ended(link.start("/bin/true").job_id)
    # Before its flusher is told, most likely.
    link = own_side.kill_supervisor(link)
    for record in (running, ended):
        directory = Path(own_side.state_dir, "jobs", record.job_id)
        own_side.wait_for(
            lambda: os.stat(directory / "job.json").st_ino == os.stat(directory / "flushed.json").st_ino  # noqa: B023
        )
    link.stop(running.job_id, force=True)


@needs_strace
def test_a_record_that_is_flushed_again_has_no_third_name(own_side: RootSide, tmp_path: Path) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/cat", stdin_open=True)
    directory = Path(own_side.state_dir, "jobs", record.job_id)
    trace = tmp_path / "trace"
    with attached(own_side.flusher_pid(), "-y", "-e", "trace=fdatasync", "-o", str(trace)):
        for times in (1, 2, 3):
            link.write_stdin(record.job_id, b"x\n")
            own_side.wait_for(lambda: trace.read_text().count(f"{record.job_id}.log>)") >= times)  # noqa: B023
    assert sorted(os.listdir(directory)) == ["flushed.json", "job.json", "logs", "work"]
    assert os.stat(directory / "job.json").st_ino == os.stat(directory / "flushed.json").st_ino


@needs_strace
def test_a_closed_segment_is_flushed_once(tmp_path: Path) -> None:
    with root_side(str(tmp_path / "side"), segment_bytes=1 << 16) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/cat", stdin_open=True)
        trace = tmp_path / "trace"
        with attached(side.flusher_pid(), "-y", "-e", "trace=fdatasync", "-o", str(trace)):
            data, name = b"x" * (3 << 16), f"job_{record.job_id}"
            for times in (1, 2, 3):
                link.feed(record.job_id, data, offset=len(data) * (times - 1))
                side.wait_for(lambda: f"{name}.log.{3 * times - 2}>)" in trace.read_text())  # noqa: B023
        flushed = re.findall(rf"{name}\.(\w+\.\d+)>", trace.read_text())
        assert sorted(flushed) == sorted(f"{kind}.{number}" for kind in ("log", "idx") for number in range(8))
        link.stop(record.job_id, force=True)


def test_an_agent_whose_name_is_lost_takes_another(own_side: RootSide) -> None:
    name = Path(own_side.state_dir, "instance")
    before = name.read_text()
    own_side.close()
    name.write_text("")
    own_side.start_again()
    own_side.link()
    assert name.read_text() not in ("", before)
