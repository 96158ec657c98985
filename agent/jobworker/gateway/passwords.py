"""Who may scrape without a certificate: HTTP's Basic authentication (RFC 7617), against hashes by bcrypt.

The hashing is crypt_r(3)'s of the host's libcrypt, which every distribution has for its logins. It is meant to be
slow, so it is done in a thread, one at a time; a password that was right is known again by a keyed digest.
"""

from __future__ import annotations

import asyncio
import binascii
import ctypes
import hmac
import os

from jobworker.errors import InvalidField

# struct crypt_data: 32 KiB in libxcrypt, 128 KiB in glibc's own of before.
_SCRATCH_BYTES = 256 * 1024
_SCHEME = "basic "


class Passwords:
    """Names with their hashes; nobody gets in where there are none.

    Raises:
        InvalidField: this host can't check them.
    """

    def __init__(self, users: tuple[tuple[str, str], ...]) -> None:
        self._hashes = dict(users)
        self._key = os.urandom(32)
        self._good: dict[str, bytes] = {}
        self._turn = asyncio.Lock()
        if users and not _hashed(b"", users[0][1]):
            problem = "this host's libcrypt does not know bcrypt; scrape with a client certificate"
            raise InvalidField("metrics.basic_auth_users", problem)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    async def admit(self, authorization: str) -> bool:
        """True for the header of somebody who is among them, with the right password."""
        name, password = _credentials(authorization)
        digest = hmac.digest(self._key, password, "sha256")
        if hmac.compare_digest(self._good.get(name, b""), digest):
            return True
        if b"\0" in password:
            # The library would see it end there.
            return False
        # A name that is not there takes as long as one that is.
        wanted = self._hashes.get(name) or next(iter(self._hashes.values()), "")
        async with self._turn:
            found = await asyncio.to_thread(_hashed, password, wanted)
        if name not in self._hashes or not hmac.compare_digest(found, wanted.encode()):
            return False
        self._good[name] = digest
        return True


def _credentials(authorization: str) -> tuple[str, bytes]:
    """Name and password; both empty where the header does not have them."""
    if authorization[: len(_SCHEME)].lower() == _SCHEME:
        try:
            both = binascii.a2b_base64(authorization[len(_SCHEME) :].strip(), strict_mode=True)
            name, _, password = both.partition(b":")
            return name.decode(), password
        except ValueError:
            pass
    return "", b""


def _hashed(password: bytes, like: str) -> bytes:
    """The password's hash with the salt and cost of another one; empty where the library can't make it."""
    try:
        crypt_r = ctypes.CDLL("libcrypt.so.1").crypt_r
    except (OSError, AttributeError):
        return b""
    crypt_r.restype = ctypes.c_char_p
    crypt_r.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
    made: bytes = crypt_r(password, like.encode(), ctypes.create_string_buffer(_SCRATCH_BYTES)) or b""
    return made if made.startswith(b"$") else b""
