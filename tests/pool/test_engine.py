"""Every kind of encoder comes to a pool through the same door."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from memworker import EmbeddingPool
from memworker.errors import UsageError
from memworker.models import ready_model
from memworker.pool import plan
from memworker.pool.budget import Budget, Footprint
from memworker.pool.echo import EchoEncoder, EchoLoader
from memworker.pool.engine import Engine, Identity, LoaderEngine, OnnxEngine, StaticEngine, resolve
from memworker.pool.tuning import tune

DIM = 8
ONE = Budget(workers=1, batch_tokens=512)


class Frugal(EchoEncoder):
    """Tells in its vectors which session run it was loaded for."""

    def __init__(self, costs):
        super().__init__(DIM)
        object.__setattr__(self, "costs", costs)

    def encode(self, texts, rows):
        yield from super().encode(texts, rows)
        rows.vectors[:, 3] = self.costs.batch_tokens


@dataclass(frozen=True)
class FrugalLoader:
    costs: plan.Costs
    dim: int = DIM

    def __call__(self):
        return Frugal(self.costs)


@dataclass(frozen=True)
class Another:
    """An engine that the package does not know."""

    token_bytes: int = 64
    identity = Identity("another", "bf16", 512, DIM, "another-1", matryoshka=True)
    costs = plan.Costs(max_tokens=512, batch_tokens=1024)
    tunable = True

    @property
    def footprint(self):
        return Footprint(DIM, weights_bytes=1 << 20, token_bytes=self.token_bytes)

    def loader(self, costs):
        return FrugalLoader(costs)


def test_another_engine_brings_its_identity_its_costs_and_its_loader():
    with EmbeddingPool(Another(), workers=1) as pool:
        assert pool.identity is Another.identity and pool.dim == DIM
        assert pool.embed(["four"])[0, [1, 3]].tolist() == [4.0, 1024.0]
    with EmbeddingPool(Another(), workers=1, batch_tokens=64) as pool:
        assert pool.embed(["four"])[0, 3] == 64.0


def test_what_an_engine_says_of_memory_counts():
    with EmbeddingPool(Another(), workers=1) as light:
        pass
    with pytest.raises(UsageError, match="not enough"):
        EmbeddingPool(Another(token_bytes=1 << 20), workers=1, memory=light.plan.memory_bytes)


def test_memory_is_that_of_the_models_rows_and_of_its_longest_text():
    whole = resolve("all-MiniLM-L6-v2").footprint
    cut = resolve("all-MiniLM-L6-v2", dim=64).footprint
    assert (whole.width, cut.dim, cut.width) == (384, 64, 384)
    long = OnnxEngine(replace(ready_model("all-MiniLM-L6-v2"), max_tokens=8192)).footprint
    # As measured: 59 to 72 bytes a token and number of its row, in blocks of scores.
    assert long.longest_bytes == 8192 * 384 * 72
    assert long.estimate(ONE) > whole.estimate(ONE) + (190 << 20)


def test_each_kind_has_its_engine():
    model = resolve("all-MiniLM-L6-v2")
    assert type(model) is OnnxEngine and model.identity.normalized and model.tunable
    assert resolve(model) is model and resolve(ready_model("all-MiniLM-L6-v2")) == model
    assert type(resolve("wordllama-256")) is StaticEngine
    own = FrugalLoader(Another.costs)
    assert resolve("echo") == LoaderEngine(EchoLoader(), "echo")
    assert resolve(own).identity == Identity("FrugalLoader", "fp32", 0, DIM, f"FrugalLoader-{DIM}")
    for engine in (model, resolve("echo"), resolve(own), Another()):
        assert isinstance(engine, Engine)
    with pytest.raises(UsageError, match="a name or a directory"):
        resolve(5)


def test_what_cannot_be_tuned_says_so():
    with pytest.raises(UsageError, match="FrugalLoader has no settings"):
        tune(["x"], model=FrugalLoader(Another.costs))
