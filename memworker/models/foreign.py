"""ONNX files made by others: what they take and give, and that their data stays with them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models.cache import ModelCache
from memworker.models.records import HashBook, keep
from memworker.models.spec import ModelEntry, Precision

# Which facts are kept and how they are found: raise it with any change of that.
_FACTS = 3
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True, slots=True)
class ForeignGraph:
    """Facts of an ONNX file: rank and width of its first output (0: dynamic), external files.

    `flops_per_token` is two operations for each weight that a product takes. `quantised`
    names operators that show that it was quantised.
    """

    rank: int
    dim: int
    inputs: tuple[str, ...]
    external: tuple[str, ...]
    flops_per_token: float
    quantised: tuple[str, ...] = ()

    def obstacle(self, precision: Precision) -> str:
        """Say why the file cannot be computed in another precision; "" where nothing is known."""
        if precision is Precision.FP32 or not self.quantised:
            return ""
        return f"the file is quantised already ({', '.join(self.quantised)}), and runs as it is"


def inspect(graph: Path, sha256: str, root: Path, cache: ModelCache) -> ForeignGraph:
    """Return the facts of `graph`, remembered by its hash, and check that it can be run.

    Raises ModelCorrupt where it is no ONNX file and ModelUnsupported where its
    inputs or outputs are not an encoder's or its data lies outside of `root`.
    """
    record = cache.root / "facts" / f"{sha256}-{_FACTS}.json"
    facts = _recall(record)
    if facts is None:
        facts = _read(graph)
        keep(record, json.dumps(asdict(facts)))
    _check_shape(graph, facts)
    for location in facts.external:
        _check_location(graph, location, root)
    return facts


def external_hashes(
    entry: ModelEntry, graph: Path, facts: ForeignGraph, known: dict[str, str], cache: ModelCache
) -> list[str]:
    """Return the hashes of the graph's external files, those `known` not taken again."""
    root = entry.directory or graph.parents[entry.weights.count("/")]
    paths = {location: graph.parent / location for location in facts.external}
    names = {loc: os.path.relpath(path, root) for loc, path in paths.items()}
    rest = [loc for loc in facts.external if names[loc] not in known]
    if not rest:
        return [known[names[loc]] for loc in facts.external]
    book = HashBook(cache.root / "stamps" / f"{entry.slug}.data.json", base=root, changing=True)
    hashes = [known.get(names[loc]) or book.digest(paths[loc]) for loc in facts.external]
    book.save()
    return hashes


def data_of(graph: Path) -> set[str]:
    """Return the files beside a graph that it keeps its data in, by their paths from there."""
    return _locations(_loaded(graph))


def _loaded(graph: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(graph), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelCorrupt(f"{graph} is no ONNX file: {error}. Fetch the model again.") from error


def _read(graph: Path) -> ForeignGraph:
    model = _loaded(graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(i.name for i in model.graph.input if i.name not in constants)
    if not model.graph.output:
        raise ModelCorrupt(f"{graph} has no output. Fetch the model again.")
    shape = model.graph.output[0].type.tensor_type.shape.dim
    width = shape[-1].dim_value if shape else 0
    external = tuple(sorted(_locations(model)))
    flops = _flops_per_token(model.graph)
    quantised = tuple(sorted({node.op_type for node in model.graph.node} & _QUANTISED))
    return ForeignGraph(len(shape), int(width), inputs, external, flops, quantised)


def _flops_per_token(graph: Any) -> float:
    sizes = {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
    products = [n for n in graph.node if "MatMul" in n.op_type or n.op_type in _PRODUCTS]
    taken = {name for node in products for name in node.input}
    weights: int = sum(size for name, size in sizes.items() if name in taken)
    return 2.0 * weights


_PRODUCTS = {"Gemm", "Attention", "QAttention"}
_QUANTISED = {
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"),
    *("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "QAttention"),
    *("MatMulNBits", "MatMulBnb4", "QOrderedMatMul", "QMoE"),
}


def _locations(model: Any) -> set[str]:
    """Collect every external file that any tensor of any graph names."""
    from onnx import TensorProto

    found = set()
    pending = [model]
    while pending:
        message = pending.pop()
        if isinstance(message, TensorProto):
            found |= {e.value for e in message.external_data if e.key == "location"}
            continue
        # Whatever holds a tensor: initializers and attributes, sparse ones too, subgraphs,
        # functions, and what a later ONNX may add.
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending += [value] if hasattr(value, "ListFields") else value
    return found


def _check_shape(graph: Path, facts: ForeignGraph) -> None:
    if strange := set(facts.inputs) - _INPUTS or {"input_ids"} - set(facts.inputs):
        raise ModelUnsupported(
            f"{graph} has the inputs {', '.join(facts.inputs)}; memworker feeds input_ids, "
            f"attention_mask and token_type_ids, and cannot do with {', '.join(sorted(strange))}."
        )
    if facts.rank not in (2, 3):
        raise ModelUnsupported(
            f"{graph}: its first output has {facts.rank} dimensions; expected [n, dim] or "
            "[n, tokens, dim]. Export the encoder without a task head."
        )


def _check_location(graph: Path, location: str, root: Path) -> None:
    """Refuse data outside of `root`: a model must not make a worker map other files."""
    parts = PurePosixPath(location).parts
    rooted = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    path = graph.parent / location
    if rooted or ".." in parts or "\\" in location or not _inside(path, root):
        raise ModelUnsupported(
            f"{graph} keeps weights in {location!r}, outside of {root}; they are not loaded. "
            "Copy the files themselves, not links, into the model's directory."
        )
    if not path.is_file():
        raise ModelCorrupt(f"{graph} keeps weights in {location!r}, and that file is not there.")


def _inside(path: Path, root: Path) -> bool:
    homes = [root]
    if root.parent.name == "snapshots":
        # A cache of the hub keeps what its snapshots link to beside them.
        homes.append(root.parent.parent / "blobs")
    return any(Path(os.path.realpath(path)).is_relative_to(os.path.realpath(h)) for h in homes)


def _recall(record: Path) -> ForeignGraph | None:
    try:
        facts = json.loads(record.read_bytes())
        inputs, external = tuple(facts["inputs"]), tuple(facts["external"])
        flops = float(facts["flops_per_token"])
        quantised = tuple(facts["quantised"])
        return ForeignGraph(
            int(facts["rank"]), int(facts["dim"]), inputs, external, flops, quantised
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None
