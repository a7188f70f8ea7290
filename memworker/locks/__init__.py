"""Locks between processes and machines, none of which outlives its holder in effect."""

from memworker.locks.drafts import draft_of
from memworker.locks.filelock import Busy, FileLock, Lost, held, holder_of
from memworker.locks.kinds import LockKind, Unsupported, kind_in, probe_kind
from memworker.locks.lease import LeasePage
from memworker.locks.process import Process
from memworker.locks.scratch import Scratch, sweep

__all__ = [
    "Busy",
    "FileLock",
    "LeasePage",
    "LockKind",
    "Lost",
    "Process",
    "Scratch",
    "Unsupported",
    "draft_of",
    "held",
    "holder_of",
    "kind_in",
    "probe_kind",
    "sweep",
]
