"""The vector space of a table: what its vectors were made with, and how they are compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

from memworker.errors import TableMismatch, UsageError

DISTANCES = ("cosine", "dot")


class MadeWith(Protocol):
    """What a pool tells of its vectors; see `EmbeddingPool.identity`."""

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """What makes vectors comparable: the model as it was run, and how they are compared."""

    model: str
    precision: str
    max_tokens: int
    dim: int
    fingerprint: str
    distance: str = "cosine"

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise UsageError(f"unknown distance {self.distance!r}; use cosine or dot")
        if self.dim < 1:
            raise UsageError(f"a vector needs at least 1 dimension, got {self.dim}")

    @classmethod
    def of(cls, made_with: MadeWith, distance: str = "cosine") -> VectorSpace:
        """Say in the store's words what vectors a model gives."""
        return cls(
            made_with.name,
            made_with.precision,
            made_with.max_tokens,
            made_with.dim,
            made_with.fingerprint,
            distance,
        )

    def must_equal(self, wanted: VectorSpace, table: str) -> None:
        """Raise TableMismatch, naming every difference, unless `wanted` is this space."""
        ours, theirs = asdict(self), asdict(wanted)
        differing = [key for key in ours if ours[key] != theirs[key]]
        if not differing:
            return
        options = f" (--dim {self.dim})" if set(differing) == {"dim", "fingerprint"} else ""
        said = "; ".join(f"{key} {ours[key]!r}, not {theirs[key]!r}" for key in differing)
        if differing == ["fingerprint"]:
            raise TableMismatch(
                f"table {table!r} holds vectors of {self.model!r} in {self.precision} that were"
                f" computed in another way: it has {said}. Its model's files are others now, or"
                " another version of memworker computes this precision otherwise: the vectors are"
                " near each other, but not the same. Use another table, or give this one the new"
                " vectors: memworker table reembed"
            )
        raise TableMismatch(
            f"table {table!r} was made with {self.model!r} ({self.dim} dimensions, "
            f"{self.distance}) and cannot take vectors of {wanted.model!r} ({wanted.dim}, "
            f"{wanted.distance}): it has {said}; use the same model options{options} or "
            "another table, or give this one the new model: memworker table reembed"
        )

    def must_still_be(self, now: VectorSpace, table: str) -> None:
        """Raise TableMismatch unless the table's vectors are `now` of this space too."""
        if now != self:
            raise TableMismatch(
                f"table {table!r} was re-embedded with {now.model!r} ({now.precision}, {now.dim} "
                f"dimensions) since it was opened with {self.model!r} ({self.precision}, "
                f"{self.dim}); open it again with that model"
            )
