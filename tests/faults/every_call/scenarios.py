"""All scenarios, by name."""

from __future__ import annotations

from tests.faults.every_call import ingests, memories, models, tables
from tests.faults.every_call.scenario import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        ingests.Ingest(),
        ingests.Append(),
        ingests.Overwriting(),
        models.FirstUse(),
        memories.Session(),
        memories.Import(),
        memories.Export(),
        tables.Optimize(),
        tables.Index(),
        tables.Reembed(),
        ingests.DurableIngest(),
        ingests.DurableAppend(),
        memories.DurableSession(),
        tables.DurableOptimize(),
        tables.DurableIndex(),
        tables.DurableReembed(),
    )
}


def warm_up() -> None:
    """Import what the scenarios import, so that a forked child need not."""
    import lancedb  # noqa: F401
    import lancedb.index
    import lancedb.query  # noqa: F401

    import memworker.cli.app
    import memworker.cli.main  # noqa: F401
