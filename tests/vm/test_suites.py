"""The suites that run anywhere, as root in a machine of a known kind."""

from __future__ import annotations

import pytest

from support.guest import Guest

pytestmark = pytest.mark.timeout(3600)


@pytest.mark.parametrize("suite", ["unit", "system"])
def test_suite(guest: Guest, suite: str) -> None:
    assert guest.run_suite(f"tests/{suite}", name=suite) == 0, f"see build/vms/{guest.name}-{suite}.txt"
