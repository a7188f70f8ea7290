"""What model cards say and files do not: words before a text, vectors that may be cut."""

from __future__ import annotations

import re

_SEARCHING = "Represent this sentence for searching relevant passages: "
_ANSWERING = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)

# Pattern of the model's name, query prefix, passage prefix: as the model cards say.
_FAMILIES = (
    (r"e5-(small|base|large)(-v2|-unsupervised)?$", "query: ", "passage: "),
    (r"bge-(small|base|large)-en(-v1\.5)?$", _SEARCHING, ""),
    (r"bge-(small|base|large)-zh(-v1\.5)?$", "为这个句子生成表示以用于检索相关文章：", ""),
    (r"arctic-embed-(xs|s|m|m-long|l|m-v1\.5)$", _SEARCHING, ""),
    (r"arctic-embed-(m|l)-v2\.0$", "query: ", ""),
    (r"mxbai-embed-(large|xsmall)-v1$", _SEARCHING, ""),
    (r"nomic-embed-text-v1(\.5)?(-Q)?$", "search_query: ", "search_document: "),
    (r"modernbert-embed-(base|large)$", "search_query: ", "search_document: "),
    (r"Qwen3-Embedding-(0\.6B|4B|8B)$", _ANSWERING, ""),
    (r"embeddinggemma-300m$", "task: search result | query: ", "title: none | text: "),
)


def prefixes_of(name: str) -> tuple[str, str]:
    """Return the query and passage prefix for a model's name, "" for none."""
    for pattern, query, passage in _FAMILIES:
        if re.search(rf"(^|[/_-]){pattern}", name, re.IGNORECASE):
            return query, passage
    return "", ""


# Trained so (Matryoshka), or their columns sorted by what they tell (potion).
_CUTTABLE = (
    r"nomic-embed-text-v1\.5(-Q)?|nomic-embed-text-v2-moe|modernbert-embed-(base|large)",
    r"mxbai-embed-(large|xsmall)-v1|arctic-embed-m-v1\.5|arctic-embed-(m|l)-v2\.0",
    r"embeddinggemma-300m|Qwen3-Embedding-.*|jina-embeddings-v[345].*|mdbr-leaf-(ir|mt)",
    r"potion-.*|M2V_.*|.*[-_]mrl[-_].*|.*matryoshka.*",
)


def may_be_cut(name: str) -> bool:
    """Say whether the first numbers of a model's vectors are a vector too, by its card."""
    return bool(re.search(rf"(^|[/_-])({'|'.join(_CUTTABLE)})$", name, re.IGNORECASE))
