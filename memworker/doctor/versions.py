"""Which packages are here, and what else would be of use."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from memworker import __version__
from memworker.doctor.findings import Finding
from memworker.models import processor_has_bf16

_PACKAGES = ("onnxruntime", "lancedb", "pyarrow", "numpy", "tokenizers", "fastembed", "openvino")


def versions() -> Finding:
    """Tell the versions of what decides about vectors and tables."""
    found = {name: _version(name) for name in _PACKAGES}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    here = [f"{name} {number}" for name, number in found.items() if number]
    advice = []
    if processor_has_bf16() and found["openvino"] is None:
        advice.append(
            "This processor computes in bf16, for which OpenVINO is missing:"
            " pip install 'memworker[openvino]'."
        )
    if sys.maxsize < 1 << 32:
        advice.append("This Python has 32 bits: tables grow past what it can map. Take one of 64.")
    facts = {"memworker": __version__, "python": platform.python_version(), **found}
    told = ", ".join([f"memworker {__version__}", python, *here])
    return Finding("versions", told, facts, tuple(advice))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
