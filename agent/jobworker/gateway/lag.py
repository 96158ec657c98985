"""How late the loop that serves is: what a call that comes waits for before anything is done for it."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from jobworker.histogram import Histogram

# Upper bounds in seconds.
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_PERIOD_SECONDS = 1.0


class Lag:
    """Sets itself a timer each second, for there is nothing else that tells of a loop which is held up.

    Attributes:
        late: by how much it fired late.
    """

    def __init__(self) -> None:
        self.late = Histogram(LAG_BOUNDS)

    async def run(self) -> NoReturn:
        """Go on measuring; ends by being cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD_SECONDS
            await asyncio.sleep(_PERIOD_SECONDS)
            self.late.add(max(0.0, loop.time() - due))
