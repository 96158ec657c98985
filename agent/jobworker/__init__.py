"""jobworker: an agent that runs Linux commands for remote clients.

Nothing is imported here: the root process loads this package too.
"""

__version__ = "0.1.0"
