"""The form of an output index, which the supervisor writes and the gateway reads, in the order of offsets."""

from __future__ import annotations

import struct

# Absolute offset, length, source, time in nanoseconds of Unix time.
RECORD = struct.Struct("<QIB3xQ")
# Where a record has its source.
SOURCE_AT = struct.calcsize("<QI")
# In place of a job's source: the agent could not write these bytes.
LOST = 0

# Why output is not there, for those who ask for it.
NOT_WRITTEN = "it is not in the log: the disk did not take it, or somebody has cut the file off"
REMOVED = "its file is gone: somebody has removed it"
DROPPED = "it is older than what the agent keeps of a log (jobs.keep_log, jobs.keep_logs)"
