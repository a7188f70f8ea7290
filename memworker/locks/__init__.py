"""Locks between processes and machines, none of which outlives its holder in effect."""

from memworker.locks.filelock import Busy, FileLock, Lost, holder_of
from memworker.locks.kinds import Kind, Unsupported
from memworker.locks.process import Process

__all__ = ["Busy", "FileLock", "Kind", "Lost", "Process", "Unsupported", "holder_of"]
