"""Tensors by name as float32, from one safetensors file or from the shards that an index names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from memworker.errors import ModelCorrupt, ModelUnsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

INDEX_SUFFIX = ".safetensors.index.json"
_HEADER_BYTES = 8
# What numpy reads a tensor's bytes as; bfloat16 is the upper half of a float32.
_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class Linear:
    """``x @ weight + bias`` with weight ``[in, out]``."""

    weight: Matrix
    bias: Matrix


@dataclass(frozen=True, slots=True)
class Norm:
    """Scale and shift of a layer normalisation, each ``[hidden]``."""

    scale: Matrix
    shift: Matrix


class Tensors:
    """The tensors of a model's files, each read when it is taken, once, by its name in `anchor`'s.

    Files put different words before all names ("bert.", "model.", none): what stands before
    `anchor`, a name that every model of the family has, is left out of them.
    """

    def __init__(self, path: Path, anchor: str) -> None:
        self.path = path
        self._places: dict[str, _Place] = {}
        for file in shards(path):
            self._places |= _places(file)
        self._taken: set[str] = set()
        self._prefix = self._prefix_of(anchor)

    def __contains__(self, name: str) -> bool:
        return f"{self._prefix}{name}" in self._places

    def take(self, name: str, shape: tuple[int | None, ...]) -> Matrix:
        """Read a tensor; ModelCorrupt where it is missing or of another shape, None for any."""
        place = self._places.get(f"{self._prefix}{name}")
        if place is None:
            raise ModelCorrupt(f"{self.path} has no tensor {name}: not the weights of this config.")
        agrees = len(place.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, place.shape, strict=True)
        )
        if not agrees:
            raise ModelCorrupt(
                f"{self.path}: {name} is {place.shape}, config.json makes it {shape}."
            )
        self._taken.add(f"{self._prefix}{name}")
        return _read(place, name)

    def linear(self, at: str, inputs: int, outputs: int) -> Linear:
        """Take a linear layer, whose weight files keep as ``[out, in]``."""
        import numpy as np

        weight = self.take(f"{at}.weight", (outputs, inputs))
        return Linear(np.ascontiguousarray(weight.T), self.take(f"{at}.bias", (outputs,)))

    def norm(self, at: str, hidden: int) -> Norm:
        """Take a layer normalisation, whose first checkpoints say gamma and beta."""
        scale, shift = ("gamma", "beta") if f"{at}.gamma" in self else ("weight", "bias")
        return Norm(self.take(f"{at}.{scale}", (hidden,)), self.take(f"{at}.{shift}", (hidden,)))

    def refuse_untaken(self, beginning: str, but: tuple[str, ...] = ()) -> None:
        """Raise ModelUnsupported for a tensor of that beginning that nobody took.

        It belongs to something that the model computes and we would leave out.
        """
        start = f"{self._prefix}{beginning}"
        left = sorted(name for name in self._places if name.startswith(start))
        left = [n for n in left if n not in self._taken and not n.endswith(but)]
        if left:
            raise ModelUnsupported(
                f"{self.path} has {left[0]} and {len(left) - 1} more tensors that memworker does "
                "not know what to do with: the model computes something else. "
                "An ONNX export of it in its folder runs as it is."
            )

    def _prefix_of(self, anchor: str) -> str:
        found = [n for n in self._places if n == anchor or n.endswith(f".{anchor}")]
        if len(found) > 1:
            raise ModelUnsupported(
                f"{self.path} holds more than one encoder ({', '.join(sorted(found))}); "
                "save the one that is wanted alone."
            )
        return found[0].removesuffix(anchor) if found else ""


def shards(path: Path) -> list[Path]:
    """Return the files that hold the tensors: `path` itself, or what the index at `path` names.

    Raises ModelCorrupt where the index cannot be read or names a file that is not there, and
    ModelUnsupported where that would lie outside of its folder.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()), key=str)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelCorrupt(f"{path} cannot be read: {error!r}. Fetch the model again.") from error
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
            raise ModelUnsupported(
                f"{path} names the file {name!r}; only files beside it are loaded."
            )
        if not path.with_name(name).is_file():
            raise ModelCorrupt(f"{path.parent} lacks {name}, a part of its weights. Copy it too.")
    return [path.with_name(name) for name in names]


def width_of(path: Path, names: tuple[str, ...]) -> int:
    """Return the last size of the first of these tensors that a file has, 0 where it has none."""
    places = _places(path)
    found = next((places[name].shape for name in names if name in places), ())
    return found[-1] if found else 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: its file, the first byte there, and what the bytes are."""

    path: Path
    offset: int
    kind: str
    shape: tuple[int, ...]


def _places(path: Path) -> dict[str, _Place]:
    """Read a file's header, once safetensors has found it and the file's length sound."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_HEADER_BYTES), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelCorrupt(
            f"{path} cannot be read: {error}. It is damaged: copy or fetch it again."
        ) from error
    start = _HEADER_BYTES + length
    return {
        name: _Place(path, start + facts["data_offsets"][0], facts["dtype"], tuple(facts["shape"]))
        for name, facts in header.items()
        if name != "__metadata__"
    }


def _read(place: _Place, name: str) -> Matrix:
    import numpy as np

    if place.kind not in _KINDS:
        raise ModelUnsupported(
            f"{place.path}: {name} is stored as {place.kind}; memworker reads {', '.join(_KINDS)}. "
            "Save the model in one of these."
        )
    # Not mapped: a file that shrinks meanwhile must be an error, and not a signal.
    count = int(np.prod(place.shape, dtype=np.int64))
    try:
        raw = np.fromfile(place.path, _KINDS[place.kind], count, offset=place.offset)
    except OSError as error:
        raise ModelCorrupt(f"{place.path} cannot be read: {error}. Fetch it again.") from error
    if len(raw) != count:
        raise ModelCorrupt(f"{place.path} ends within {name}: copy or fetch it again.")
    if place.kind == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    matrix: Matrix = raw.astype(np.float32, copy=False).reshape(place.shape)
    return matrix
