"""Signs of life for the service manager, from the loop that serves: sd_watchdog_enabled(3)."""

from __future__ import annotations

import asyncio
import os

from jobworker.wire import service_manager


async def keep_alive() -> None:
    """Tell the service manager that calls are served, and go on telling, if it wants that; never fails."""
    period = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
    wanted = period > 0 and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    service_manager.tell("READY=1")
    while wanted:
        service_manager.tell("WATCHDOG=1")
        # Twice as often as it has to be, as the manual has it.
        await asyncio.sleep(period / 2)
