"""A job that counts, so that each line that is lost or told twice is seen."""

from __future__ import annotations

from support.fleet import Member, wait_for

COUNT = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 5"
COUNTED = "".join(f"{i}\n" for i in range(200))
# However slow the machine is, the job is there for as long as it takes.
UNTIL_TOLD = "i=0; while [ ! -e go ]; do echo $i; i=$((i+1)); sleep 1; done; exit 5"


def tell(member: Member) -> None:
    """End all jobs of the host that count until they are told."""
    member.guest.root.check_output("for job in /var/lib/jobworker/jobs/*/work; do touch $job/go; done")


def check_end(member: Member, job_id: str, *, keeper_died: bool = False) -> None:
    """The end is exact; when the keeper died before it and the kernel does not tell, it is said to be unknown."""
    wait_for(lambda: member.asked("query", job_id)["state"] == "ENDED")
    job = member.asked("query", job_id)
    if keeper_died and not member.tells_ends():
        assert job["end_reason"] == "LOST"
        assert "6.15" in job["detail"]
    else:
        assert (job["end_reason"], job["exit_code"]) == ("EXITED", 5)


def check_count(output: bytes | str) -> int:
    """How many lines there are, each of them once and in order."""
    lines = output.split()
    assert [int(line) for line in lines] == list(range(len(lines)))
    return len(lines)
