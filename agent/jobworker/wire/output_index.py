"""The form of an output index, which the supervisor writes and the gateway reads, in the order of offsets."""

from __future__ import annotations

import struct

# Absolute offset, length, source, for how many segments right before this one that source wrote alone, and time in
# nanoseconds of Unix time. The number of segments is in the first record of one; 0 where it is not known.
RECORD = struct.Struct("<QIBxHQ")
MAX_ALONE = 2**16 - 1
# Where a record has its source.
SOURCE_AT = struct.calcsize("<QI")
# In place of a job's source: the agent could not write these bytes.
LOST = 0

# Why output is not there, for those who ask for it.
NOT_WRITTEN = "it is not in the log: the disk did not take it, or somebody has cut the file off"
REMOVED = "its file is gone: somebody has removed it"
DROPPED = "it is older than what the agent keeps of a log (jobs.keep_log, jobs.keep_logs)"
