"""Where the settings of a connection come from.

A flag stands above an environment variable, and that above the current context of the context file. A context
that is asked for by its name stands above the environment, too: who says `--context staging` must not reach
the host that a forgotten JOBWORKER_ADDR names. The file is read only where flags and environment leave
something open:

    current: staging
    contexts:
      staging:
        addr: staging.example.org:7443
        ca: certs/ca.pem         # relative to this file
        cert: ~/certs/writer.pem
        key: ~/certs/writer.key
        server_name: agent       # may be left out
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobworker.client.endpoint import Endpoint, check_addr
from jobworker.client.failures import SettingsMissing
from jobworker.errors import InvalidField

REQUIRED = ("addr", "ca", "cert", "key")
NAMES = (*REQUIRED, "server_name")
_TOP = ("current", "contexts")
_FILES = ("ca", "cert", "key")

# A thousand contexts take a quarter of it.
_MAX_FILE = 1024 * 1024
_EXAMPLE = "`contexts: {lab: {addr: '127.0.0.1:7443', ca: ca.pem, cert: me.pem, key: me.key}}`"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a setting is.

    Attributes:
        origin: who says so: an option, a variable, or a context of the file.
        passed_over: others who say something, and do not count.
    """

    value: str
    origin: str
    passed_over: tuple[str, ...] = ()


def endpoint(flags: Mapping[str, str | None], environ: Mapping[str, str], context: str = "") -> Endpoint:
    """The endpoint that these settings name together.

    Args:
        flags: by the names of the settings; what was not given is `None`, empty or left out.
        environ: the process's environment.
        context: the context that was asked for by name.

    Raises:
        SettingsMissing: something is named nowhere.
        InvalidField: the context file or the address is not right.
    """
    found = settings(flags, environ, context)
    check_complete(found, environ, context)
    return Endpoint(**{name: setting.value for name, setting in found.items()})


def check_complete(found: Mapping[str, Setting], environ: Mapping[str, str], context: str = "") -> None:
    """Check that settings name an endpoint.

    Raises:
        SettingsMissing: something is named nowhere.
        InvalidField: the address is not right.
    """
    missing = tuple(name for name in REQUIRED if name not in found)
    if missing:
        raise SettingsMissing(missing, config_path(environ), context)
    check_addr(found["addr"].value)


def settings(flags: Mapping[str, str | None], environ: Mapping[str, str], context: str = "") -> dict[str, Setting]:
    """What each setting is, and who says so; those that nobody names are left out.

    Raises:
        InvalidField: the context file is not right.
    """
    found: dict[str, Setting] = {}
    for name, value, origin in _said(flags, environ, context):
        first = found.get(name)
        found[name] = (
            Setting(first.value, first.origin, (*first.passed_over, origin)) if first else Setting(value, origin)
        )
    return found


def _said(
    flags: Mapping[str, str | None], environ: Mapping[str, str], context: str
) -> Iterator[tuple[str, str, str]]:
    """Name, value and origin of all that is said, what counts before what it stands above."""
    given = [(name, value, f"--{name.replace('_', '-')}") for name in NAMES if (value := flags.get(name))]
    variables = [
        (name, value, variable)
        for name in NAMES
        if (value := environ.get(variable := f"JOBWORKER_{name.upper()}"))
    ]
    yield from given
    if context:
        yield from _context(config_path(environ), context, must_exist=True)
        yield from variables
        return
    yield from variables
    if not {name for name, *_ in (*given, *variables)} >= set(REQUIRED):
        yield from _context(config_path(environ), "", must_exist=bool(environ.get("JOBWORKER_CONFIG")))


@dataclass(frozen=True, slots=True)
class ContextFile:
    """What a context file says; nothing, if there is none.

    Attributes:
        current: the name of the current context; empty for none.
        contexts: the settings that each has, by its name.
    """

    path: str
    current: str
    contexts: Mapping[str, Mapping[str, str]]

    def context(self, name: str) -> Mapping[str, str]:
        """The settings of this context, which must be there.

        Raises:
            InvalidField: it is not; there are others.
        """
        if name not in self.contexts:
            known = ", ".join(self.contexts) or "none"
            raise InvalidField(
                f"{self.path}: contexts", f"{name!r:.80} is not among them; there are: {known:.200}"
            )
        return self.contexts[name]


def read(path: str, *, must_exist: bool = False) -> ContextFile:
    """Read a context file.

    Raises:
        InvalidField: it is not right.
    """
    return parse(path, _load(path, must_exist=must_exist))


def parse(path: str, data: bytes) -> ContextFile:
    """Read what a context file holds, or is to hold.

    Raises:
        InvalidField: it is not right.
    """
    file = _mapping(f"{path}: ", _parse(path, data) if data else None, _TOP)
    return ContextFile(path, _text(f"{path}: current", file.get("current")), _contexts(path, file))


def config_path(environ: Mapping[str, str]) -> str:
    """The context file: JOBWORKER_CONFIG, or `jobworker/config.yaml` in the user's configuration."""
    home = environ.get("XDG_CONFIG_HOME", "")
    # The base directory specification: a relative path is to be ignored.
    base = home if os.path.isabs(home) else os.path.expanduser("~/.config")
    return environ.get("JOBWORKER_CONFIG") or os.path.join(base, "jobworker", "config.yaml")


def _context(path: str, name: str, *, must_exist: bool) -> Iterator[tuple[str, str, str]]:
    """What a context says, the current one for no name; nothing where there is none."""
    file = read(path, must_exist=must_exist)
    if chosen := name or file.current:
        for key, value in file.context(chosen).items():
            yield key, value, f"context {chosen!r} of {path}"


def _contexts(path: str, file: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {
        str(key): _settings(path, f"contexts.{key}.", value)
        for key, value in _mapping(f"{path}: contexts.", file.get("contexts")).items()
    }


def _settings(path: str, where: str, value: Any) -> dict[str, str]:
    """One context, its files as paths from the folder of the context file."""
    settings = _mapping(f"{path}: {where}", value, NAMES)
    texts = {key: _text(f"{path}: {where}{key}", each) for key, each in settings.items()}
    folder = os.path.dirname(path)
    return {
        key: os.path.join(folder, os.path.expanduser(text)) if key in _FILES else text
        for key, text in texts.items()
        if text
    }


def _load(path: str, *, must_exist: bool) -> bytes:
    """The file; nothing where it does not exist and need not."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        if not must_exist:
            return b""
        raise InvalidField(path, "does not exist", _EXAMPLE) from None
    except OSError as error:
        raise InvalidField(path, f"cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise InvalidField(path, f"is larger than {_MAX_FILE} bytes")
    return data


def _parse(path: str, data: bytes) -> Any:
    import yaml  # noqa: PLC0415 - most commands have no need of it

    try:
        return yaml.safe_load(data)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InvalidField(path, f"is not YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidField(path, f"is not YAML: {' '.join(str(error).split()):.200}") from None


def _mapping(where: str, value: Any, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """The value as a mapping with none but the known keys, if any are named; `None` is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidField(where.rstrip(".: "), "is not a mapping", _EXAMPLE)
    for key in value:
        if known and key not in known:
            raise InvalidField(f"{where}{key!s:.80}", f"is not known here; known are {', '.join(known)}")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str | None):
        raise InvalidField(where, f"{value!r:.80} is not text; put it into quotes")
    return value or ""
