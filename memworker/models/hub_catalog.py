"""Models of the Hugging Face Hub that are built from their safetensors, as their cards say."""

from __future__ import annotations

from memworker.models.head import weight_files
from memworker.models.prefixes import prefixes_of
from memworker.models.spec import (
    Activation,
    Dense,
    HubRepo,
    ModelEntry,
    ModelFile,
    ModelSpec,
    Pooling,
)

_WEIGHTS = "model.safetensors"
_FILES = (_WEIGHTS, "tokenizer.json", "config.json")


def _entry(
    repo: str,
    about: str,
    *,
    dim: int,
    license: str,
    pooling: Pooling = Pooling.MEAN,
    normalize: bool = True,
    max_tokens: int = 512,
    position_limit: int = 512,
    matryoshka: bool = False,
    dense: tuple[Dense, ...] = (),
    revision: str = "main",
) -> ModelEntry:
    query, passage = prefixes_of(repo)
    files = (*_FILES, *weight_files(dense))
    return ModelEntry(
        spec=ModelSpec(
            name=repo,
            dim=dim,
            pooling=pooling,
            normalize=normalize,
            max_tokens=max_tokens,
            position_limit=position_limit,
            query_prefix=query,
            passage_prefix=passage,
            license=license,
            description=about,
            matryoshka=matryoshka,
            dense=dense,
        ),
        weights=_WEIGHTS,
        files=tuple(ModelFile(path) for path in files),
        hub=HubRepo(repo, revision),
    )


_CLS = Pooling.CLS
_MIT, _APACHE = "mit", "apache-2.0"
_ST = "sentence-transformers"

# What fastembed's catalogue has as well, and memworker runs, is not here: its ONNX files are other
# vectors, and tables hold them.
HUB_ENTRIES: tuple[ModelEntry, ...] = (
    _entry(
        "intfloat/multilingual-e5-small",
        "94 languages, 12 layers, 118 M parameters, most of them its 250,000 words.",
        dim=384,
        license=_MIT,
    ),
    _entry(
        "intfloat/multilingual-e5-base",
        "94 languages, 12 layers, 278 M parameters (XLM-RoBERTa).",
        dim=768,
        license=_MIT,
    ),
    _entry("intfloat/e5-small-v2", "English, 12 layers, 33 M parameters.", dim=384, license=_MIT),
    _entry("intfloat/e5-base-v2", "English, 12 layers, 109 M parameters.", dim=768, license=_MIT),
    _entry("intfloat/e5-large-v2", "English, 24 layers, 335 M parameters.", dim=1024, license=_MIT),
    _entry("thenlper/gte-small", "English, 12 layers, 33 M parameters.", dim=384, license=_MIT),
    _entry(
        "BAAI/bge-m3",
        "More than 100 languages, 24 layers, 568 M parameters (XLM-RoBERTa): the dense vectors.",
        dim=1024,
        license=_MIT,
        pooling=_CLS,
        max_tokens=8192,
        position_limit=8192,
        # The hub's own conversion, which transformers takes too: the publisher's branch has
        # pickled weights alone.
        revision="refs/pr/130",
    ),
    _entry(
        "Snowflake/snowflake-arctic-embed-m-v1.5",
        "English, 12 layers, 109 M parameters; 256 dimensions are enough.",
        dim=768,
        license=_APACHE,
        pooling=_CLS,
        matryoshka=True,
    ),
    _entry(
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "74 languages, 24 layers, 568 M parameters (XLM-RoBERTa); 256 dimensions are enough.",
        dim=1024,
        license=_APACHE,
        pooling=_CLS,
        max_tokens=8192,
        position_limit=8192,
        matryoshka=True,
    ),
    _entry(
        "ibm-granite/granite-embedding-30m-english",
        "English, 6 layers, 30 M parameters (RoBERTa).",
        dim=384,
        license=_APACHE,
        pooling=_CLS,
    ),
    _entry(
        "ibm-granite/granite-embedding-125m-english",
        "English, 12 layers, 125 M parameters (RoBERTa).",
        dim=768,
        license=_APACHE,
        pooling=_CLS,
    ),
    _entry(
        "ibm-granite/granite-embedding-107m-multilingual",
        "12 languages, 6 layers, 107 M parameters (XLM-RoBERTa).",
        dim=384,
        license=_APACHE,
        pooling=_CLS,
    ),
    _entry(
        "ibm-granite/granite-embedding-278m-multilingual",
        "12 languages, 12 layers, 278 M parameters (XLM-RoBERTa).",
        dim=768,
        license=_APACHE,
        pooling=_CLS,
    ),
    _entry(
        "nomic-ai/modernbert-embed-base",
        "English, 22 layers, 149 M parameters (ModernBERT); 256 dimensions are enough.",
        dim=768,
        license=_APACHE,
        max_tokens=8192,
        position_limit=8192,
        matryoshka=True,
    ),
    _entry(
        "Alibaba-NLP/gte-modernbert-base",
        "English, 22 layers, 149 M parameters (ModernBERT); vectors of any length.",
        dim=768,
        license=_APACHE,
        pooling=_CLS,
        normalize=False,
        max_tokens=8192,
        position_limit=8192,
    ),
    _entry(
        "Qwen/Qwen3-Embedding-0.6B",
        "More than 100 languages, 28 layers, 596 M parameters; 32 dimensions or more.",
        dim=1024,
        license=_APACHE,
        pooling=Pooling.LAST,
        max_tokens=32768,
        position_limit=32768,
        matryoshka=True,
    ),
    _entry(
        "google/embeddinggemma-300m",
        "More than 100 languages, 24 layers, 308 M parameters (Gemma 3); 128 dimensions or more. "
        "The hub asks for an account that accepted Gemma's terms.",
        dim=768,
        license="gemma",
        max_tokens=2048,
        position_limit=2048,
        matryoshka=True,
        dense=(
            Dense("2_Dense", 768, 3072, bias=False, activation=Activation.IDENTITY),
            Dense("3_Dense", 3072, 768, bias=False, activation=Activation.IDENTITY),
        ),
    ),
    _entry(
        f"{_ST}/all-mpnet-base-v2",
        "English, 12 layers, 109 M parameters (MPNet).",
        dim=768,
        license=_APACHE,
        max_tokens=384,
    ),
    _entry(
        f"{_ST}/all-distilroberta-v1",
        "English, 6 layers, 82 M parameters (RoBERTa).",
        dim=768,
        license=_APACHE,
    ),
    _entry(
        f"{_ST}/all-MiniLM-L12-v2",
        "English, 12 layers, 33 M parameters.",
        dim=384,
        license=_APACHE,
        max_tokens=128,
    ),
    _entry(
        f"{_ST}/multi-qa-mpnet-base-dot-v1",
        "English, questions and answers, 12 layers, 109 M parameters (MPNet); "
        "vectors of any length, for the dot product.",
        dim=768,
        license="",
        pooling=_CLS,
        normalize=False,
    ),
    _entry(
        f"{_ST}/multi-qa-mpnet-base-cos-v1",
        "English, questions and answers, 12 layers, 109 M parameters (MPNet).",
        dim=768,
        license="",
    ),
    _entry(
        f"{_ST}/multi-qa-distilbert-cos-v1",
        "English, questions and answers, 6 layers, 66 M parameters (DistilBERT).",
        dim=768,
        license="",
    ),
    _entry(
        f"{_ST}/multi-qa-MiniLM-L6-cos-v1",
        "English, questions and answers, 6 layers, 22 M parameters.",
        dim=384,
        license="",
    ),
)
