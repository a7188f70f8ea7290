"""An MCP server: agents' memories as tools, each call returning after its commit.

The memory opens in the background, so that the handshake and the list of tools
are answered at once, and a call waits for a model that is still being fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired

from memworker import AsyncMemory, __version__
from memworker.errors import MemoryNotFound, MemworkerError, UsageError
from memworker.integrations.pools import framework, meant

with framework("mcp"):
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.mcpserver.tools import Tool
    from mcp_types import ToolAnnotations
    from pydantic import Field, ValidationError
    from typing_extensions import TypedDict

__all__ = ["MemoryServer"]

# What was accepted is committed in milliseconds; only a disk that hangs takes longer.
_CLOSE_S = 10.0
# More at once would keep a client waiting without a word.
_AT_ONCE = 256
_PROGRESS_S = 2.0
_INSTRUCTIONS = (
    "Long-term memory. Search it before answering what may depend on earlier conversations, and"
    " add what is worth remembering: one self-contained statement a memory."
)

_log = logging.getLogger(__name__)

UserId = Annotated[str | None, Field(description="Whose memories; default: as the server was told")]
AgentId = Annotated[str | None, Field(description="Which agent's memories; default likewise")]
RunId = Annotated[str | None, Field(description="Of which session; default likewise")]
Filters = Annotated[
    dict[str, Any] | None,
    Field(
        description="Conditions on metadata fields, created_at or text: {field: value}, or"
        " {field: {op: value}} with eq, ne, gt, gte, lt, lte, in, nin, contains; AND, OR and NOT"
        " take lists of such. A list meets what one of its values meets; a.b is b inside a"
    ),
]


class AddedMemory(TypedDict):
    """What became of one text: ADD, UPDATE, NONE (it was there already) or ERROR."""

    event: Literal["ADD", "UPDATE", "NONE", "ERROR"]
    id: NotRequired[str]
    memory: NotRequired[str]
    error: NotRequired[str]
    truncated: NotRequired[bool]


class AddedMemories(TypedDict):
    """One result a text, in their order; `note` says what else there is to know."""

    results: list[AddedMemory]
    note: NotRequired[str]


class StoredMemory(TypedDict):
    """A memory; `score` is there when it was searched for, higher is better."""

    id: str
    memory: str
    metadata: dict[str, Any]
    created_at: str
    updated_at: str
    score: NotRequired[float]
    user_id: NotRequired[str]
    agent_id: NotRequired[str]
    run_id: NotRequired[str]
    expires_at: NotRequired[str]
    before: NotRequired[list[dict[str, Any]]]
    after: NotRequired[list[dict[str, Any]]]


class StoredMemories(TypedDict):
    """Memories, best or newest first; `note` says why there may be none."""

    results: list[StoredMemory]
    note: NotRequired[str]


class DeletedMemories(TypedDict):
    """Which memories were deleted (by their ids), and why others were not."""

    message: str
    deleted: list[str]
    errors: list[str]


class MemoryServer(MCPServer[None]):
    """The tools add_memories, search_memories, list_memories and delete_memories.

    `open_memory` is called in a thread when the server begins to serve, and again
    by the next call if it failed. `scope` holds the ids that hold where a call
    names none. `mcp_serving` serves it, over stdin and stdout or HTTP.
    """

    def __init__(
        self, open_memory: Callable[[], AsyncMemory], scope: Mapping[str, str] | None = None
    ) -> None:
        self._opening = _Opening(open_memory)
        self._scope = dict(scope or {})
        reads = ToolAnnotations(read_only_hint=True)
        adds = ToolAnnotations(destructive_hint=False, idempotent_hint=True)
        deletes = ToolAnnotations(destructive_hint=True)
        super().__init__(
            "memworker",
            instructions=_INSTRUCTIONS,
            version=__version__,
            lifespan=self._opened,
            log_level="WARNING",
            tools=[
                _strict(self.add_memories, adds),
                _strict(self.search_memories, reads),
                _strict(self.list_memories, reads),
                _strict(self.delete_memories, deletes),
            ],
        )

    async def add_memories(
        self,
        memories: Annotated[
            list[str], Field(min_length=1, description="Self-contained statements to remember")
        ],
        user_id: UserId = None,
        agent_id: AgentId = None,
        run_id: RunId = None,
        metadata: Annotated[
            dict[str, Any] | None, Field(description="Stored with each, to filter by")
        ] = None,
        expires_at: Annotated[
            str | None, Field(description="When they are forgotten, as 2026-01-31T12:00:00Z")
        ] = None,
        *,
        context: Context[Any, Any],
    ) -> AddedMemories:
        """Remember texts; returns when they are stored. What is known is not added again."""
        scope = self._scoped(user_id, agent_id, run_id)
        told: list[AddedMemory] = []
        async with _progress(context, len(memories)) as reached:
            memory = await self._opening.memory()
            for start in range(0, len(memories), _AT_ONCE):
                part = memories[start : start + _AT_ONCE]
                done = await memory.add_batch(
                    part, **_ids(scope), metadata=metadata, expires_at=expires_at
                )
                told += [_told(record) for record in done["results"]]
                await reached(len(told))
        if all(each["event"] == "ERROR" for each in told):
            raise UsageError(f"nothing was stored: {told[0]['error']}")
        answer: AddedMemories = {"results": told}
        if note := _note(told, expires_at):
            answer["note"] = note
        return answer

    async def search_memories(
        self,
        query: Annotated[str, Field(description="What to look for, in plain words")],
        user_id: UserId = None,
        agent_id: AgentId = None,
        run_id: RunId = None,
        filters: Filters = None,
        limit: Annotated[int, Field(ge=1, le=100, description="How many at most")] = 10,
        threshold: Annotated[
            float | None, Field(description="Leave out lower scores; -1 to 1 in mode vector")
        ] = None,
        mode: Annotated[
            Literal["vector", "text", "hybrid"],
            Field(description="By meaning, by words, or both"),
        ] = "vector",
        context: Annotated[
            int, Field(ge=0, le=20, description="How many memories before and after each to show")
        ] = 0,
    ) -> StoredMemories:
        """Find the memories that fit a query best."""
        where = self._where(user_id, agent_id, run_id, filters)
        memory = await self._opening.memory()
        found = await memory.search(
            query, filters=where, limit=limit, threshold=threshold, mode=mode, context=context
        )
        return _found(found)

    async def list_memories(
        self,
        user_id: UserId = None,
        agent_id: AgentId = None,
        run_id: RunId = None,
        filters: Filters = None,
        limit: Annotated[int, Field(ge=1, le=1000, description="How many at most")] = 100,
    ) -> StoredMemories:
        """List memories, newest first."""
        where = self._where(user_id, agent_id, run_id, filters)
        memory = await self._opening.memory()
        found = await memory.get_all(filters=where, limit=limit)
        return _found(found)

    async def delete_memories(
        self,
        ids: Annotated[list[str] | None, Field(description="The memories' ids")] = None,
        all: Annotated[
            bool, Field(description="Delete everything of user_id, agent_id and run_id instead")
        ] = False,
        user_id: UserId = None,
        agent_id: AgentId = None,
        run_id: RunId = None,
        erase: Annotated[bool, Field(description="Keep no history either")] = False,
    ) -> DeletedMemories:
        """Delete memories by their ids, or all of a user, an agent or a session.

        With ids, a user_id, agent_id or run_id says whose they must be.
        """
        if bool(ids) == all:
            raise UsageError("give either the ids of memories or all=true")
        memory = await self._opening.memory()
        if all:
            scope = self._scoped(user_id, agent_id, run_id)
            rows = (await memory.delete_all(**_ids(scope), erase=erase))["deleted"]
            named = ", ".join(f"{name} {value!r}" for name, value in scope.items())
            told = f"all memories of {named} were deleted: {rows:,}"
            return {"message": told, "deleted": [], "errors": []}
        unique = list(dict.fromkeys(ids or []))
        theirs, errors = await _of(_given(user_id, agent_id, run_id), unique, memory)
        done = (await memory.delete_batch(theirs, erase=erase))["results"] if theirs else []
        errors += [record["error"] for record in done if "error" in record]
        if len(errors) == len(unique):
            raise MemoryNotFound(errors[0])
        deleted = [record["id"] for record in done if "id" in record]
        return {"message": f"{len(deleted)} deleted", "deleted": deleted, "errors": errors}

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        """Call a tool; what is wrong is a ToolError of one line, in our words."""
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                flaws = _one_line(error.__cause__, self._takes(name))
                raise ToolError(flaws) from error.__cause__
            if isinstance(error.__cause__, MemworkerError):
                raise ToolError(str(error.__cause__)) from error.__cause__
            raise

    async def close(self) -> None:
        """Let what was accepted be committed and end the workers; at most some seconds."""
        await self._opening.close()

    @asynccontextmanager
    async def _opened(self, _: MCPServer[None]) -> AsyncIterator[None]:
        # Not earlier: by now the SDK has put stdout out of the reach of workers.
        self._opening.begin()
        yield

    def _takes(self, tool: str) -> list[str]:
        known = self._tool_manager.get_tool(tool)
        return list(known.parameters["properties"]) if known else []

    def _scoped(self, *ids: str | None) -> dict[str, str]:
        """Return the scope of a call, which models like to fill in with empty texts."""
        if scope := self._scope | _given(*ids):
            return scope
        raise UsageError("whose memories? Give user_id, agent_id or run_id")

    def _where(self, *given: Any) -> dict[str, Any]:
        *ids, filters = given
        return self._scoped(*ids) | ({"AND": [filters]} if filters else {})


class _Opening:
    """A memory that is opened in the background, and again after a failure."""

    def __init__(self, open_memory: Callable[[], AsyncMemory]) -> None:
        self._open = open_memory
        self._task: asyncio.Task[AsyncMemory] | None = None

    def begin(self) -> asyncio.Task[AsyncMemory]:
        """Open it unless it is open or being opened; over HTTP each session asks for it."""
        task = self._task
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._task = asyncio.ensure_future(self._enter())
        return task

    async def memory(self) -> AsyncMemory:
        task = self.begin()
        # Shielded: a call that is cancelled must not cancel the opening, which others wait for.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Close what is open; what is still being opened ends with the process."""
        task = self._task
        if task is not None and task.done() and not task.cancelled() and not task.exception():
            await asyncio.wait_for(task.result().close(), _CLOSE_S)

    async def _enter(self) -> AsyncMemory:
        try:
            memory = await asyncio.to_thread(self._open)
            return await memory.__aenter__()
        except MemworkerError as error:
            # The client may not show it before a tool is called.
            _log.warning("the memory could not be opened: %s", error)
            raise


def _given(*ids: str | None) -> dict[str, str]:
    names = ("user_id", "agent_id", "run_id")
    return {name: value for name, value in zip(names, ids, strict=True) if value}


async def _of(
    scope: Mapping[str, str], ids: list[str], memory: AsyncMemory
) -> tuple[list[str], list[str]]:
    """Part ids into those of a scope that was named, and why others are left; of none, all are."""
    if not scope:
        return ids, []
    where = {**scope, "id": {"in": ids}}
    found = (await memory.get_all(filters=where, limit=None))["results"]
    theirs = {record["id"] for record in found}
    named = ", ".join(f"{name} {value!r}" for name, value in scope.items())
    others = [f"there is no memory {each!r} of {named}" for each in ids if each not in theirs]
    return [each for each in ids if each in theirs], others


def _ids(scope: Mapping[str, str]) -> dict[str, Any]:
    return dict(scope)


def _told(record: Mapping[str, Any]) -> AddedMemory:
    if "error" in record:
        return {"event": "ERROR", "error": record["error"]}
    kept = ("event", "id", "memory", "truncated")
    return {name: record[name] for name in kept if name in record}  # type: ignore[return-value]


def _note(told: Sequence[AddedMemory], expires_at: str | None) -> str:
    """Say what a client would not think of: what cannot be found, in whole or at all."""
    notes = []
    if cut := sum(each.get("truncated", False) for each in told):
        notes.append(
            f"{cut} of {len(told)} are longer than the model sees; a search by meaning knows their"
            " beginning only, so split them"
        )
    if expires_at and _moment(expires_at) <= datetime.now(UTC):
        notes.append(f"expires_at={expires_at!r} is in the past: they are stored, and not found")
    return ". ".join(notes)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@asynccontextmanager
async def _progress(
    context: Context[Any, Any], total: int
) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Tell a client that asked for it how far an addition is, and every few seconds that it lives.

    Progress has to grow: what is told between two parts nears the next one and never gets there.
    """
    done, told = 0, 0.0

    async def reached(number: int) -> None:
        nonlocal done, told
        done = told = number
        await context.report_progress(number, total, f"{number} of {total} are stored")

    async def live() -> None:
        nonlocal told
        while True:
            await asyncio.sleep(_PROGRESS_S)
            told += (min(done + _AT_ONCE, total) - told) / 4
            await context.report_progress(told, total, f"{done} of {total} are stored, at work")

    living = asyncio.ensure_future(live())
    try:
        yield reached
    finally:
        living.cancel()


def _found(answer: Mapping[str, Any]) -> StoredMemories:
    found: StoredMemories = {"results": [_stored(record) for record in answer["results"]]}
    if "note" in answer:
        found["note"] = answer["note"]
    return found


def _stored(record: Mapping[str, Any]) -> StoredMemory:
    kept = StoredMemory.__annotations__
    return {name: record[name] for name in kept if name in record}  # type: ignore[return-value]


def _strict(tool: Callable[..., Any], hints: ToolAnnotations) -> Tool:
    """Make a tool that refuses what it does not take.

    The SDK's leaves it out: a deletion that names its user by another word would be of others.
    """
    made = Tool.from_function(tool, annotations=hints, structured_output=True)
    lax = made.fn_metadata.arg_model
    strict: Any = type(lax.__name__, (lax,), {"__module__": __name__}, extra="forbid")
    made.fn_metadata.arg_model = strict
    made.parameters = strict.model_json_schema(by_alias=True)
    return made


def _one_line(error: ValidationError, takes: Sequence[str]) -> str:
    """Say which arguments are wrong, without pydantic's links and without the values."""
    flaws = error.errors()
    return "; ".join(_flaw(each["type"], each["loc"], each["msg"], takes) for each in flaws)


def _flaw(kind: str, place: Sequence[str | int], said: str, takes: Sequence[str]) -> str:
    where = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return f"there is no argument {where!r}{meant(where, takes)}; there are {', '.join(takes)}"
    return f"{where}: {said}"
