"""Other versions of the agent, made of the working tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support.guest import ROOT


def make_version(version: str, directory: Path, **changes: str) -> str:
    """Build archives of another version; `changes` replace a line of the package's `__init__`."""
    source = directory / version
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if name.startswith(("agent/", "pki/", "systemd/", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.join(ROOT, name), source / name)
    project = source / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1.0"', f'version = "{version}"', 1))
    init = source / "agent/jobworker/__init__.py"
    init.write_text(init.read_text().replace('"0.1.0"', f'"{changes.get("says", version)}"'))
    wheelhouse = str(directory / "wheelhouse")
    script = os.path.join(ROOT, "requirements", "wheelhouse.sh")
    subprocess.run([script, wheelhouse, str(source)], check=True, capture_output=True)
    return wheelhouse
