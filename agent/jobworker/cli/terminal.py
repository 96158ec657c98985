"""What a job wrote, made safe for the terminal it is shown on.

Escape sequences can retitle a window, fill the clipboard, or have the terminal type answers into the shell.
So on a terminal only newline, tab, carriage return and colours (SGR) pass; every other control character is
written out, and so is every byte that is not UTF-8.
"""

from __future__ import annotations

import codecs
import re

from jobworker.printable import written_out

_SGR = r"\x1b\[[0-9;:]{0,64}m"
# C0 but \t \n \r, DEL, and C1, of which terminals take U+009B for ESC [.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
_SPECIAL = re.compile(f"(?P<colour>{_SGR})|(?P<control>{_CONTROL})")
# The beginning of what may yet become a colour, when more comes.
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;:]{0,64})?\Z")

_RESET = b"\x1b[0m"


class TerminalFilter:
    """Bytes on their way to a terminal; characters and colours may be split between the pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""
        self._coloured = False

    def feed(self, data: bytes) -> bytes:
        """What can be shown by now; at most one unfinished character or colour is held back."""
        text = self._held + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        end = unfinished.start() if unfinished else len(text)
        self._held = text[end:]
        return self._shown(text[:end])

    def finish(self) -> bytes:
        """What was held back, and the end of any colour."""
        rest = self._shown(self._held + self._decoder.decode(b"", final=True))
        self._held = ""
        return rest + (_RESET if self._coloured else b"")

    def _shown(self, text: str) -> bytes:
        return _SPECIAL.sub(self._replace, text).encode()

    def _replace(self, match: re.Match[str]) -> str:
        if match.lastgroup == "colour":
            self._coloured = True
            return match[0]
        return written_out(match[0])
