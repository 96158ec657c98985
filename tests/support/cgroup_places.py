"""Cgroups that tests make their own in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobworker.kernel.cgroup import detect


@contextmanager
def v2_place() -> Iterator[Path]:
    """A cgroup of this process's own in the v2 hierarchy; without one the test is skipped."""
    found = detect.cgroup_mounts()
    if not found.v2:
        pytest.skip("this host has no cgroup v2")
    path = Path(found.v2, f"jobworker-test-{os.getpid()}")
    path.mkdir()
    try:
        yield path
    finally:
        for left, _, _ in os.walk(path, topdown=False):
            os.rmdir(left)
