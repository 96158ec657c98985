"""What the role asks a host: each answer about this one, and about versions that lie as it leaves them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobworker.kernel.cgroup import detect

ASK = Path(__file__).parents[2] / "ansible" / "roles" / "agent" / "files" / "ask.py"


def ask(root: Path, *paths: Path, now: float = 0.0) -> dict[str, Any]:
    command = [sys.executable, "-c", ASK.read_text(), *map(str, (now, root, root / "state", *paths))]
    answer: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return answer


def test_what_this_host_is(tmp_path: Path) -> None:
    asked = ask(tmp_path, now=time.time() - 100)
    system = os.uname()
    assert (asked["name"], asked["machine"]) == (system.nodename, system.machine)
    assert system.release.startswith("{}.{}".format(*asked["kernel"]))
    assert asked["python"] == [*sys.version_info[:2]]
    assert asked["ahead"] == pytest.approx(100, abs=60)
    assert asked["systemd"] == os.path.exists("/run/systemd/system")
    # It is to be known before anything is made there.
    free = os.statvfs(tmp_path)
    assert 0 < asked["free"] <= free.f_blocks * free.f_frsize >> 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_the_agent_calls_its_cgroups_the_same(tmp_path: Path) -> None:
    mounts = detect.cgroup_mounts()
    mode = ("hybrid" if mounts.v2 else "v1") if mounts.v1 else "v2"
    assert ask(tmp_path)["cgroups"] == mode


def test_a_host_without_an_agent(tmp_path: Path) -> None:
    asked = ask(tmp_path / "nowhere", tmp_path / "nothing")
    told = {name: asked[name] for name in ("installed", "current", "current_is_for_it", "previous", "there")}
    assert told == {"installed": {}, "current": "", "current_is_for_it": False, "previous": "", "there": []}


def test_its_versions_and_files(tmp_path: Path) -> None:
    for version, mark in {"0.1.0": "abc\n", "0.1.1": "def\n", "0.1.2": ""}.items():
        library = tmp_path / version / "venv" / "lib" / "python{}.{}".format(*sys.version_info)
        library.mkdir(parents=True)
        # One has been left half-way.
        if mark:
            (tmp_path / version / "installed").write_text(mark)
    (tmp_path / "current").symlink_to("0.1.1")
    (tmp_path / "previous").write_text("0.1.0\n")
    dangling, absent = tmp_path / "dangling", tmp_path / "absent"
    dangling.symlink_to("nowhere")
    asked = ask(tmp_path, dangling, absent)
    assert asked["installed"] == {"0.1.0": "abc", "0.1.1": "def"}
    assert (asked["current"], asked["current_is_for_it"], asked["previous"]) == ("0.1.1", True, "0.1.0")
    assert asked["there"] == [str(dangling)]
    (tmp_path / "0.1.1" / "venv" / "lib" / "python{}.{}".format(*sys.version_info)).rename(tmp_path / "moved")
    assert ask(tmp_path)["current_is_for_it"] is False
