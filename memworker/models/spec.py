"""Frozen facts about a model: what it is, and where its verified files lie."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Precision(StrEnum):
    """How the linear layers are computed."""

    FP32 = "fp32"
    INT8 = "int8"


class Pooling(StrEnum):
    """How token vectors become one text vector."""

    MEAN = "mean"
    CLS = "cls"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known of a model before any file of it is on disk."""

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


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model whose files are on disk and verified: all a worker needs to open a session.

    `graph` is an ONNX file, its weights beside it as external data. Where
    `pooled` is true one run gives the final ``float32[n, dim]``; otherwise it
    gives ``float32[n, tokens, dim]`` and pooling and normalisation follow
    `spec`. Vectors of equal `fingerprint` may be compared with each other:
    it covers weights, tokenizer, pooling, precision, graph recipe and
    `max_tokens`, the truncation in force.
    """

    spec: ModelSpec
    precision: Precision
    max_tokens: int
    graph: Path
    tokenizer: Path
    pooled: bool
    fingerprint: str
