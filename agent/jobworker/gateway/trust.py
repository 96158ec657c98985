"""All that the gateway's trust rests on, as the files have it at the moment."""

from __future__ import annotations

import time

from jobworker.errors import PkiProblem
from jobworker.gateway import credentials, revocation
from jobworker.gateway.credentials import Credentials
from jobworker.gateway.kept import Kept
from jobworker.gateway.revocation import Revocations
from jobworker.settings.schema import Settings


class Trust:
    """Certificates and revocations; a change that cannot be used leaves what was good.

    Raises:
        PkiProblem: the files are not to be served with.

    Attributes:
        credentials: the agent's own pair, and the CAs of its clients.
        revocations: which of the clients' certificates are not accepted any more.
    """

    def __init__(self, settings: Settings) -> None:
        tls = settings.tls

        def load(before: Credentials | None) -> Credentials:
            own = credentials.load(tls)
            for listen in filter(None, (settings.listen, settings.metrics.listen)):
                credentials.check_listen(listen, own, tls)
            if before and _is_current(before) and not _is_current(own):
                raise PkiProblem(tls.cert, "is not valid now, and the one in use is")
            return own

        self.credentials: Kept[Credentials] = Kept("certificates", credentials.paths(tls), load)
        self.revocations: Kept[Revocations] = Kept(
            "revocations", revocation.paths(tls), lambda before: revocation.load(tls, before)
        )

    def read_again(self) -> None:
        """Whatever the files look like from outside."""
        self.credentials.again()
        self.revocations.again()

    @property
    def problems(self) -> dict[str, str]:
        """Why files as they are now are not in use, by what they hold."""
        kept = {"certificates": self.credentials.problem, "revocations": self.revocations.problem}
        return {what: problem for what, problem in kept.items() if problem}


def _is_current(own: Credentials) -> bool:
    return own.begins_ns <= time.time_ns() <= own.expires_ns
