"""LangGraph's `BaseStore` over one table: what agents keep between threads, on the disk.

An item is a row, its value the row's metadata and its namespace, joined by dots, the row's
`user_id`. Each further text of it that is indexed is a row of its own beside it, which bears
the stamp of the item's last put: one of an older put is not believed.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from memworker import Table
from memworker.errors import UsageError
from memworker.integrations.langchain import MemworkerEmbeddings
from memworker.integrations.pools import at_least_one, framework, refuse_other, refuse_unknown
from memworker.integrations.rows import (
    HAS_VECTOR,
    INNER,
    READ,
    Kept,
    delete_ids,
    parted,
    put,
    space_of,
)
from memworker.paths import PathGiven, database_place
from memworker.values import shown

with framework("langgraph"):
    from langchain_core.embeddings import Embeddings
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        Item,
        ListNamespacesOp,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        ensure_embeddings,
        get_text_at_path,
        tokenize_path,
    )

__all__ = ["MemworkerStore"]

# Without an index no vector is made; the table has to have some size all the same.
_DIM_WITHOUT_INDEX = 2
_ITEMS = {f"{INNER}.of": None}
_SCALARS = (str, int, float)
_MORE_THAN_ASKED = 8

Found = tuple[Item, str]


class MemworkerStore(BaseStore):
    """Items of agents in one table, found by namespace, by their values and by meaning.

    `index` is LangGraph's: `embed`, `fields` (default: the whole value) and `dims`, which
    `MemworkerEmbeddings` say by themselves. Without it nothing is embedded, and a query is
    answered as if it was not there. Items have no `ttl`. Threads and coroutines may share a
    store, processes a table.
    """

    def __init__(
        self, db: PathGiven, *, table: str = "langgraph", index: Mapping[str, Any] | None = None
    ) -> None:
        _check_index(index)
        self.index_config = dict(index) if index else None
        self.embeddings = ensure_embeddings(index["embed"]) if index else None
        self._paths = [_path(each) for each in (index or {}).get("fields") or ["$"]]
        made = self.embeddings
        pool = made.pool if isinstance(made, MemworkerEmbeddings) else None
        space = space_of("langgraph", pool, _dims(index, pool))
        self.table = Table.open_or_create(database_place(db), table, space)

    supports_ttl = False

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Read what is asked for, then write what is put, in one commit."""
        listed = list(ops)
        texts, queries = self._to_embed(listed)
        if self.embeddings is None:
            return self._run(listed, {}, {})
        made = self.embeddings.embed_documents(texts) if texts else []
        asked = {query: self.embeddings.embed_query(query) for query in queries}
        return self._run(listed, dict(zip(texts, made, strict=True)), asked)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Do what `batch` does without blocking the event loop."""
        listed = list(ops)
        texts, queries = self._to_embed(listed)
        made: list[Any] = []
        asked: dict[str, Any] = {}
        if self.embeddings is not None:
            made = await self.embeddings.aembed_documents(texts) if texts else []
            vectors = await asyncio.gather(*map(self.embeddings.aembed_query, queries))
            asked = dict(zip(queries, vectors, strict=True))
        return await asyncio.to_thread(
            self._run, listed, dict(zip(texts, made, strict=True)), asked
        )

    def _to_embed(self, ops: Sequence[Op]) -> tuple[list[str], list[str]]:
        """Give the texts of what is put, and the queries, each once; refuse what cannot be kept."""
        for op in ops:
            # By `put` LangGraph refuses it itself, and by a batch nobody would.
            if isinstance(op, PutOp) and op.ttl is not None:
                raise NotImplementedError(
                    f"the item {op.key!r} has ttl={op.ttl}, and MemworkerStore keeps items until"
                    " they are deleted: put it with ttl=None, and delete it when its time is over"
                )
        if self.embeddings is None:
            return [], []
        puts = [op for op in ops if isinstance(op, PutOp) and op.value is not None]
        texts = dict.fromkeys(text for op in puts for text in self._texts(op))
        queries = dict.fromkeys(op.query for op in ops if isinstance(op, SearchOp) and op.query)
        return list(texts), list(queries)

    def _texts(self, op: PutOp) -> list[str]:
        if self.embeddings is None or op.index is False:
            return []
        paths = self._paths if op.index is None else [_path(each) for each in op.index]
        found = (text for path in paths for text in get_text_at_path(op.value, path))
        return [text for text in dict.fromkeys(found) if text]

    def _run(
        self, ops: Sequence[Op], vectors: Mapping[str, Any], queries: Mapping[str, Any]
    ) -> list[Result]:
        answers: list[Result] = []
        puts: dict[str, PutOp] = {}
        for op in ops:
            answer: Result = None
            if isinstance(op, GetOp):
                answer = self._items({"id": _name(op.namespace, op.key)}).get(_name(*op[:2]))
            elif isinstance(op, SearchOp):
                answer = self._search(op, queries.get(op.query or ""))
            elif isinstance(op, ListNamespacesOp):
                answer = self._namespaces(op)
            elif isinstance(op, PutOp):
                puts[_name(op.namespace, op.key)] = op
            else:
                raise UsageError(f"a store has no operation {type(op).__name__}")
            answers.append(answer)
        self._put(puts, vectors)
        return answers

    def _put(self, puts: Mapping[str, PutOp], vectors: Mapping[str, Any]) -> None:
        if not puts:
            return
        rows = [
            row
            for name, op in puts.items()
            if op.value is not None
            for row in self._rows(name, op, vectors)
        ]
        put(self.table, rows)
        # What an item no longer is: others do not believe it meanwhile, for its stamp is old.
        stay = {row.id for row in rows}
        theirs = {"OR": [{"id": {"in": list(puts)}}, {f"{INNER}.of": {"in": list(puts)}}]}
        found = self.table.rows(theirs, columns=["id"])["id"].to_pylist()
        delete_ids(self.table, [name for name in found if name not in stay])

    def _rows(self, name: str, op: PutOp, vectors: Mapping[str, Any]) -> list[Kept]:
        texts, stamp = self._texts(op), uuid.uuid4().hex
        place, first = _place(op.namespace), texts[0] if texts else ""
        inner = {"key": op.key, "stamp": stamp}
        value = dict(op.value or {})
        made = [Kept(name, first, vectors.get(first), value, inner, place)]
        for number, text in enumerate(texts[1:], 1):
            part = {"of": name, "stamp": stamp}
            made.append(Kept(f"{name}#{number}", text, vectors[text], {}, part, place))
        return made

    def _search(self, op: SearchOp, query: Any) -> list[SearchItem]:
        wanted = op.offset + op.limit
        where = {"AND": [_within(op.namespace_prefix), _scalars(op.filter)]}
        if query is None:
            limit = None if op.filter else wanted
            found = self._items({"AND": [where, _ITEMS]}, limit).values()
            kept = [item for item in found if _meets(item.value, op.filter)]
            return [_scored(item, None) for item in kept[op.offset : wanted]]
        # A filter concerns items, whose further texts have no values.
        near = self._near(op, query, wanted)
        if len(near) < wanted:
            without = {"AND": [where, _ITEMS, {"NOT": HAS_VECTOR}]}
            left = self._items(without).values()
            near += [_scored(item, None) for item in left if _meets(item.value, op.filter)]
        return near[op.offset : wanted]

    def _near(self, op: SearchOp, query: Any, wanted: int) -> list[SearchItem]:
        """Return the nearest items, each once by its nearest text."""
        import numpy as np

        vector = np.asarray(query, np.float32)
        where = {"AND": [_within(op.namespace_prefix), HAS_VECTOR]}
        limit = 2 * wanted + _MORE_THAN_ASKED
        while True:
            hits = self.table.search(vector, limit=limit, where=where, columns=("id", "metadata"))
            named = [(hit, parted(hit.metadata)[1]) for hit in hits]
            ids = [inner.get("of", hit.id) for hit, inner in named]
            items = self._found({"id": {"in": list(dict.fromkeys(ids))}})
            best: dict[str, SearchItem] = {}
            for (hit, inner), name in zip(named, ids, strict=True):
                item, stamp = items.get(name, (None, ""))
                if item is None or inner.get("stamp") != stamp or name in best:
                    continue
                if _meets(item.value, op.filter):
                    best[name] = _scored(item, hit.score)
            if len(best) >= wanted or len(hits) < limit:
                return list(best.values())[:wanted]
            limit *= 4

    def _items(self, where: Mapping[str, Any], limit: int | None = None) -> dict[str, Item]:
        return {name: item for name, (item, _) in self._found(where, limit).items()}

    def _found(self, where: Mapping[str, Any], limit: int | None = None) -> dict[str, Found]:
        """Return items by their ids, each with the stamp of its last put."""
        rows = self.table.rows(where, columns=[*READ, "user_id"], limit=limit).to_pylist()
        return {row["id"]: _item(row) for row in rows}

    def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        there = {
            tuple(place.split("."))
            for batch in self.table.scan(_ITEMS, columns=["user_id"])
            for place in batch["user_id"].to_pylist()
        }
        kept = [space for space in there if all(_fits(c, space) for c in op.match_conditions or ())]
        if op.max_depth is not None:
            kept = list({space[: op.max_depth] for space in kept})
        return sorted(kept)[op.offset : op.offset + op.limit]


def _check_index(index: Mapping[str, Any] | None) -> None:
    refuse_other("index", index, Mapping)
    if index is None:
        return
    refuse_unknown("index=", index, ("dims", "embed", "fields"))
    embed, fields = index.get("embed"), index.get("fields")
    if not (callable(embed) or isinstance(embed, Embeddings | str)):
        raise UsageError(
            "index= needs embed: MemworkerEmbeddings, another Embeddings of LangChain's, a function"
            f' or "provider:model", not {shown(embed)}'
        )
    if fields is not None and (
        not isinstance(fields, list | tuple) or not all(isinstance(each, str) for each in fields)
    ):
        raise UsageError(f"fields of index= are a list of paths into a value, not {shown(fields)}")


def _dims(index: Mapping[str, Any] | None, pool: Any) -> int:
    if index is None:
        return _DIM_WITHOUT_INDEX
    known = pool.dim if pool is not None else index.get("dims")
    if known is None:
        raise UsageError("index= needs dims, the number of dimensions that embed gives")
    if index.get("dims") not in (None, known):
        raise UsageError(f"index= says {index['dims']} dims, and its embeddings give {known}")
    return at_least_one("dims", known)


def _path(field: str) -> Any:
    return field if field == "$" else tokenize_path(field)


def _name(namespace: Sequence[str], key: str) -> str:
    return json.dumps([*namespace, key], ensure_ascii=False)


def _place(namespace: Sequence[str]) -> str:
    if not namespace or not all(isinstance(each, str) and each for each in namespace):
        raise UsageError(f"a namespace is a tuple of texts, none empty, not {namespace!r}")
    if any("." in label for label in namespace):
        raise UsageError(f"a namespace's labels hold no dot, as one of {namespace!r} does")
    return ".".join(namespace)


def _within(prefix: Sequence[str]) -> dict[str, Any]:
    if not prefix:
        return {}
    place = _place(prefix)
    # What begins with it and a dot: "/" is what comes after that.
    below = {"user_id": {"gte": f"{place}.", "lt": f"{place}/"}}
    return {"OR": [{"user_id": place}, below]}


def _scalars(conditions: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give what of a filter the table can look for; a little more than it asks may be found."""
    asked = {f"metadata.{n}": v for n, v in (conditions or {}).items() if type(v) in _SCALARS}
    return {name: value for name, value in asked.items() if name.count(".") == 1}


def _meets(value: Mapping[str, Any], conditions: Mapping[str, Any] | None) -> bool:
    return all(_equals(value.get(name), asked) for name, asked in (conditions or {}).items())


def _equals(value: Any, asked: Any) -> bool:
    if isinstance(asked, Mapping):
        if any(str(name).startswith("$") for name in asked):
            return all(_operator(value, name, bound) for name, bound in asked.items())
        return isinstance(value, Mapping) and all(
            _equals(value.get(n), v) for n, v in asked.items()
        )
    if isinstance(asked, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(asked)
        return same and all(map(_equals, value, asked))
    return bool(value == asked)


def _operator(value: Any, name: str, bound: Any) -> bool:
    if name in ("$eq", "$ne"):
        return bool(value == bound) == (name == "$eq")
    if name not in ("$gt", "$gte", "$lt", "$lte"):
        raise UsageError(f"unknown operator {name!r}; there are $eq, $ne, $gt, $gte, $lt, $lte")
    try:
        found, limit = float(value), float(bound)
    except (TypeError, ValueError):
        return False
    return {
        "$gt": found > limit, "$gte": found >= limit, "$lt": found < limit, "$lte": found <= limit
    }[name]  # fmt: skip


def _fits(condition: Any, namespace: tuple[str, ...]) -> bool:
    path = tuple(condition.path)
    if len(namespace) < len(path):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[-len(path) :]
    return all(asked in ("*", label) for asked, label in zip(path, part, strict=bool(path)))


def _item(row: Mapping[str, Any]) -> Found:
    value, inner = parted(json.loads(row["metadata"] or "{}"))
    namespace = tuple(row["user_id"].split("."))
    times: dict[str, datetime] = {name: row[name] for name in ("created_at", "updated_at")}
    return Item(value=value, key=inner["key"], namespace=namespace, **times), inner["stamp"]


def _scored(item: Item, score: float | None) -> SearchItem:
    return SearchItem(
        namespace=item.namespace,
        key=item.key,
        value=item.value,
        created_at=item.created_at,
        updated_at=item.updated_at,
        score=score,
    )
