"""What bf16 needs: OpenVINO, and a processor with instructions for it."""

from __future__ import annotations

from importlib.util import find_spec

from memworker import processor
from memworker.errors import UsageError

_FLAGS = ("avx512_bf16", "amx_bf16")
_NEEDS = (
    "precision bf16 needs a processor with AVX512_BF16 or AMX (amx_bf16), and OpenVINO"
    " (pip install 'memworker[openvino]')"
)


def refuse_without() -> None:
    """Raise UsageError where OpenVINO or the processor's instructions are missing."""
    if missing := obstacle():
        raise UsageError(f"{_NEEDS}; {missing}. Take precision int8 (--precision int8), or fp32.")


def obstacle() -> str:
    """Say what is missing for bf16 here; "" where nothing is."""
    if not processor_has_bf16():
        return "this processor has neither AVX512_BF16 nor AMX"
    if find_spec("openvino") is None:
        return "openvino is not installed here"
    return ""


def processor_has_bf16() -> bool:
    """Say whether this processor multiplies in bf16; False where nothing tells."""
    return not processor.features().isdisjoint(_FLAGS)
