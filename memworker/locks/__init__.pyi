from .drafts import draft_of as draft_of
from .filelock import (
    Busy as Busy,
    FileLock as FileLock,
    Lost as Lost,
    held as held,
    holder_of as holder_of,
)
from .kinds import (
    LockKind as LockKind,
    Unsupported as Unsupported,
    kind_in as kind_in,
    probe_kind as probe_kind,
)
from .lease import LeasePage as LeasePage
from .process import Process as Process
from .scratch import Scratch as Scratch, sweep as sweep
