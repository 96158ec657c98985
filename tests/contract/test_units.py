"""The units: how far they are hardened, and that what they say is what the agent needs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a host that has the units."""
    where = tmp_path / "etc/systemd/system"
    where.mkdir(parents=True)
    for unit in UNITS.glob("*.service"):
        shutil.copy(unit, where)
    return tmp_path


def analyze(root: Path, unit: str, threshold: float) -> subprocess.CompletedProcess[str]:
    words = ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--root={root}"]
    # The option is in tenths.
    words += [f"--threshold={round(threshold * 10)}", unit]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def drop_in(root: Path, name: str) -> None:
    directory = root / "etc/systemd/system/jobworker-keeper.service.d"
    directory.mkdir()
    shutil.copy(UNITS / name, directory)


def test_the_gateway_is_exposed_little(root: Path) -> None:
    done = analyze(root, "jobworker-gateway.service", 1.5)
    assert done.returncode == 0, done.stdout


def test_so_are_the_rules_of_the_firewall(root: Path) -> None:
    done = analyze(root, "jobworker-firewall.service", 2.5)
    assert done.returncode == 0, done.stdout


def test_the_keeper_takes_from_jobs_what_their_sandbox_does(root: Path) -> None:
    done = analyze(root, "jobworker-keeper.service", 5.1)
    assert done.returncode == 0, done.stdout


def test_the_hardened_keeper(root: Path) -> None:
    drop_in(root, "keeper-hardened.conf")
    done = analyze(root, "jobworker-keeper.service", 4.4)
    assert done.returncode == 0, done.stdout


def test_the_threshold_can_be_missed(root: Path) -> None:
    drop_in(root, "keeper-host.conf")
    assert analyze(root, "jobworker-keeper.service", 4.4).returncode != 0


def test_systemd_knows_every_word(root: Path) -> None:
    python = root / "opt/jobworker/current/venv/bin/python"
    for program in (python, root / "bin/sh", root / "usr/bin/kill", root / "usr/sbin/nft"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(0o755)
    units = sorted(unit.name for unit in UNITS.glob("*.service"))
    words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", *units]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_keeper_keeps_its_way_of_opening_files() -> None:
    """RestrictSUIDSGID= takes openat2(2) away: its flags are where a filter cannot see them."""
    for path in (UNITS / "jobworker-keeper.service", UNITS / "keeper-hardened.conf", UNITS / "keeper-host.conf"):
        assert not [line for line in path.read_text().splitlines() if line.startswith("RestrictSUIDSGID=")]
