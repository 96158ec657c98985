"""Other versions of the agent, made of the working tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support.guest import ROOT

WHEELHOUSE = os.path.join(ROOT, "dist", "wheelhouse")


def make_version(version: str, python: str, directory: Path, *, says: str = "", starts: bool = True) -> str:
    """Build the archive of another version for one Python, of the wheels that `make wheelhouse` has collected.

    Args:
        version: its number.
        python: as `3.11`.
        directory: of its own.
        says: the number that it says itself, if that is to be another one.
        starts: it takes jobs.

    Returns:
        the directory with the archive.
    """
    source, wheels = directory / version, directory / "wheels"
    wheels.mkdir()
    archive = os.path.join(WHEELHOUSE, f"jobworker-0.1.0-py{python}-x86_64.tar")
    subprocess.run(["tar", "-C", str(wheels), "-xf", archive], check=True)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if name.startswith(("agent/", "pki/", "systemd/", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.join(ROOT, name), source / name)
    project = source / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1.0"', f'version = "{version}"', 1))
    init = source / "agent/jobworker/__init__.py"
    init.write_text(init.read_text().replace('"0.1.0"', f'"{says or version}"'))
    spoken = source / "agent/jobworker/wire/messages.py"
    spoken.write_text(spoken.read_text().replace("\nPROTOCOL = ", "\nPROTOCOL = 1000 + "))
    if not starts:
        servicer = source / "agent/jobworker/gateway/servicer.py"
        broken = "    async def Start(self, *_):\n        raise RuntimeError\n\n    async def _start("
        servicer.write_text(servicer.read_text().replace("    async def Start(", broken, 1))
    # Units change from version to version.
    for unit in (source / "systemd").glob("*.service"):
        unit.write_text(f"# {version}\n{unit.read_text()}")
    wheelhouse = str(directory / "wheelhouse")
    script = os.path.join(ROOT, "requirements", "wheelhouse.sh")
    # The machines' network leads nowhere.
    offline = {"PYTHONS": python, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    subprocess.run([script, wheelhouse, str(source)], check=True, env=os.environ | offline)
    return wheelhouse
