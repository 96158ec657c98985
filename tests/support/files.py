"""Files that somebody else reads."""

from __future__ import annotations

import os


def put(path: str | os.PathLike[str], data: bytes, mode: int = 0o600) -> None:
    """Put a file in the place of another, as editors and deployments do: nobody sees half of it."""
    beside = f"{os.fspath(path)}.new"
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
    os.rename(beside, path)
