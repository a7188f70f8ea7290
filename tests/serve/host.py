"""`python -m tests.serve.host LOADER JSON`: a server over an encoder made for tests."""

from __future__ import annotations

import json
import os
import sys

from memworker.pool import EmbeddingPool
from memworker.serve import server
from memworker.serve.options import ServeOptions
from tests.faults.saboteur import Saboteur
from tests.serve.loaders import Gated, LoadsUnless, SlowStart, wait_for

LOADERS = {
    "gated": Gated,
    "slow_start": SlowStart,
    "loads_unless": LoadsUnless,
    "saboteur": Saboteur,
}


def say(address):
    """Say where the server listens: once it is ready, or `early`, before it is."""
    sys.stderr.write(f"on {address}\n")
    sys.stderr.flush()


def main():
    told = json.loads(sys.argv[2])
    loader = LOADERS[sys.argv[1]](**told.get("loader", {}))
    pool = EmbeddingPool
    if stuck := told.get("stuck"):

        class pool(EmbeddingPool):  # a close that does not come to its end
            def close(self):
                wait_for(stuck)

    options = ServeOptions(port=0, **told.get("options", {}))
    code = server.run(
        options,
        lambda: pool(loader, workers=1, **told.get("pool", {})),
        on_listening=say if told.get("early") else None,
        on_ready=lambda service, address: say(address),
        names=("test",),
    )
    os._exit(code)


if __name__ == "__main__":
    main()
