"""Everything that is looked at, one after the other, while the probe is at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from memworker import diagnosis
from memworker.doctor import places, system
from memworker.doctor.findings import Finding
from memworker.doctor.speed import SpeedProbe
from memworker.doctor.versions import versions
from memworker.models import DEFAULT_MODEL
from memworker.paths import Bucket, PathGiven, database_place

PATIENCE_S = 2.7


def examine_machine(
    db: PathGiven | Bucket,
    model: str = DEFAULT_MODEL,
    precision: str = "fp32",
    *,
    patience_s: float = PATIENCE_S,
) -> Iterator[Finding]:
    """Yield what this machine has and allows; `db` is where a table would lie.

    Of a bucket it is the folder in which this machine keeps its journal that is looked at.

    Takes `patience_s` seconds at most: what the probe of the pool has not found by then is
    said to be missing. Raises UnknownModel, and UsageError for what is no place of a database.
    """
    place = database_place(db)
    folder = place.state if isinstance(place, Bucket) else place
    until = time.monotonic() + patience_s
    looks: dict[str, Callable[[], Finding]] = {
        "model cache": lambda: places.model_cache(model),
        "processor": system.processor,
        "cores": system.cores,
        "memory": system.memory,
        "shared memory": system.shared_memory,
        "process limits": system.process_limits,
        "disk": lambda: places.disk(folder),
        "temporary files": places.temporary,
        "versions": versions,
    }
    cache = _looked("model cache", looks.pop("model cache"))
    probe = SpeedProbe(model, precision) if cache.facts.get("cached") else None
    yield from (_looked(topic, look) for topic, look in looks.items())
    yield cache
    if probe is not None:
        yield probe.finding(until)


def _looked(topic: str, look: Callable[[], Finding]) -> Finding:
    """Look; what the system refuses to show is a finding too."""
    try:
        return look()
    except OSError as error:
        said = diagnosis.told(error)
        return Finding(topic, f"cannot be seen: {said}", {"error": said}, (f"{said}.",))
