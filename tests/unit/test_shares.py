"""How many jobs may have an open standard input: so many that each is sure to be held, whoever dies."""

from __future__ import annotations

import pytest

from jobworker.errors import CapExceeded
from jobworker.jobs import JobRecord, State
from jobworker.limits import NO_LIMITS
from jobworker.settings.schema import JobSettings, QuotaSettings
from jobworker.supervisor.shares import MAX_OPEN_STDIN, Shares


def record(*, stdin_open: bool) -> JobRecord:
    return JobRecord("", "", "", (), (), (), "", 0, 0, 0, State.RUNNING, 0, stdin_open=stdin_open)


def test_open_standard_inputs_have_a_bound() -> None:
    records = [record(stdin_open=n % 2 == 0) for n in range(2 * MAX_OPEN_STDIN - 2)]
    shares = Shares(JobSettings(), QuotaSettings(), lambda: ((each, NO_LIMITS) for each in records))
    shares.check_stdin()
    records.append(record(stdin_open=True))
    with pytest.raises(CapExceeded, match=f"open standard input may be {MAX_OPEN_STDIN} at most"):
        shares.check_stdin()


def test_the_service_manager_s_store_has_room_for_them() -> None:
    """As its unit has it: three descriptors of each job, and two more of these."""
    assert 3 * JobSettings().max_active + 2 * MAX_OPEN_STDIN <= 7_200
