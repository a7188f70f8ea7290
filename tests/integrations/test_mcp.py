"""`memworker mcp` as the SDK's own client meets it, and as a process that is ended."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests import PATIENCE_S

pytest.importorskip("mcp", reason='needs pip install "memworker[mcp]"')

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from memworker import Table
from memworker.integrations.mcp_serving import Guard
from tests.cli.test_memory import run_json

COMMAND = str(Path(sys.executable).with_name("memworker"))
ECHO = ("--model", "echo")
ALICE = ("--user-id", "alice")
TOOLS = ["add_memories", "search_memories", "list_memories", "delete_memories"]

# A server whose memory opens when the FIFO of its first argument is opened for writing.
WAITING = """
import sys
from memworker import AsyncMemory
from memworker.integrations.mcp import MemoryServer
from memworker.integrations.mcp_serving import run

def open_memory():
    with open(sys.argv[1]) as fifo:
        fifo.read()
    return AsyncMemory(sys.argv[2], model="echo", workers=1)

run(MemoryServer(open_memory, {"user_id": "alice"}))
"""


@pytest.fixture
def db(tmp_path):
    return str(tmp_path / "db")


@pytest.fixture
def errors(tmp_path):
    with open(tmp_path / "stderr", "w+") as file:
        yield file


@asynccontextmanager
async def connected(errors, *args, command=COMMAND, mode="auto"):
    parameters = StdioServerParameters(command=command, args=list(map(str, args)))
    async with Client(stdio_client(parameters, errlog=errors), mode=mode) as client:
        yield client


async def call(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


async def refusal(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    (content,) = result.content
    assert "\n" not in content.text
    return content.text


def texts(result):
    return [each["memory"] for each in result["results"]]


def said(errors):
    errors.seek(0)
    return errors.read()


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_add_search_list_and_delete(db, errors, mode):
    async def talk():
        async with connected(errors, "mcp", db, *ALICE, *ECHO, mode=mode) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == TOOLS
            assert all(tool.output_schema and tool.description for tool in tools)
            added = await call(
                client, "add_memories", memories=["I like tea", " ", "milk"], metadata={"n": 1}
            )
            assert [each["event"] for each in added["results"]] == ["ADD", "ERROR", "ADD"]
            assert "blank" in added["results"][1]["error"]
            again = await call(client, "add_memories", memories=["I like tea"], user_id="")
            assert again["results"][0] == added["results"][0] | {"event": "NONE"}
            found = await call(
                client, "search_memories", query="tea", mode="text", filters={"n": {"gte": 1}}
            )
            assert texts(found) == ["I like tea"] and found["results"][0]["score"] > 0
            assert found["results"][0]["metadata"] == {"n": 1}
            both = await call(client, "search_memories", query="tea", limit=1)
            assert len(both["results"]) == 1
            await call(client, "add_memories", memories=["bob's"], user_id="bob")
            assert texts(await call(client, "list_memories")) == ["milk", "I like tea"]
            assert texts(await call(client, "list_memories", user_id="bob")) == ["bob's"]
            memory_id = added["results"][0]["id"]
            gone = await call(client, "delete_memories", ids=[memory_id, "nobody", memory_id])
            assert gone["deleted"] == [memory_id] and "'nobody'" in gone["errors"][0]
            gone = await call(client, "delete_memories", all=True)
            assert "user_id 'alice'" in gone["message"]
            assert texts(await call(client, "list_memories")) == []
            assert texts(await call(client, "list_memories", user_id="bob")) == ["bob's"]

    asyncio.run(talk())
    assert said(errors) == ""


def test_what_is_wrong_is_told_in_one_line_and_ends_nothing(db, errors):
    async def talk():
        async with connected(errors, "mcp", db, *ECHO) as client:
            assert "whose memories" in await refusal(client, "list_memories")
            assert "whose memories" in await refusal(client, "add_memories", memories=["x"])
            with_alice = {"user_id": "alice"}
            told = await refusal(client, "search_memories", query=" ", **with_alice)
            assert told == "a query is some text, not ' '"
            told = await refusal(client, "search_memories", query="x", limit=0, **with_alice)
            assert told.startswith("limit: ")
            told = await refusal(client, "add_memories", memories=["", " "], **with_alice)
            assert told.startswith("nothing was stored: a memory must not be blank")
            assert "memories" in await refusal(client, "add_memories", memories="x", **with_alice)
            assert "memories" in await refusal(client, "add_memories", memories=[], **with_alice)
            told = await refusal(
                client, "add_memories", memories=["x"], expires_at="soon", **with_alice
            )
            assert "'soon' is no time" in told
            bad = {"n": {"near": 3}}
            assert "near" in await refusal(client, "list_memories", filters=bad, **with_alice)
            assert "all=true" in await refusal(client, "delete_memories", **with_alice)
            told = await refusal(client, "delete_memories", ids=["a"], all=True, **with_alice)
            assert "all=true" in told
            assert "'nobody'" in await refusal(client, "delete_memories", ids=["nobody"])
            await call(client, "add_memories", memories=["still here"], **with_alice)

    asyncio.run(talk())
    assert said(errors) == ""


UNKNOWN = {
    "add_memories": {"memories": ["x"], "meta": {"n": 1}},
    "search_memories": {"query": "x", "top_k": 3},
    "list_memories": {"filter": {"n": 1}},
    "delete_memories": {"all": True, "userId": "bob"},
}


def test_an_argument_that_a_tool_does_not_have_is_refused_by_its_name(db, errors):
    async def talk():
        async with connected(errors, "mcp", db, *ALICE, *ECHO) as client:
            tools = (await client.list_tools()).tools
            assert {tool.name for tool in tools} == set(UNKNOWN)
            assert all(tool.input_schema["additionalProperties"] is False for tool in tools)
            await call(client, "add_memories", memories=["alice's"])
            for tool, arguments in UNKNOWN.items():
                told = await refusal(client, tool, **arguments)
                (wrong,) = set(arguments) - {"memories", "query", "all"}
                assert f"there is no argument {wrong!r}" in told and "user_id" in told
            assert texts(await call(client, "list_memories")) == ["alice's"]

    asyncio.run(talk())


def test_ids_are_deleted_only_of_whom_a_call_names(db, errors):
    async def talk():
        async with connected(errors, "mcp", db, *ALICE, *ECHO) as client:
            added = await call(client, "add_memories", memories=["a", "b"])
            ids = [each["id"] for each in added["results"]]
            told = await refusal(client, "delete_memories", ids=ids, user_id="bob")
            assert f"there is no memory {ids[0]!r} of user_id 'bob'" in told
            assert len(texts(await call(client, "list_memories"))) == 2
            gone = await call(client, "delete_memories", ids=ids, user_id="alice")
            assert gone["deleted"] == ids and gone["errors"] == []

    asyncio.run(talk())


def test_progress_is_told_and_what_cannot_be_found(db, errors):
    heard = []

    async def hear(progress, total, message):
        heard.append((progress, total, message))

    async def talk():
        async with connected(errors, "mcp", db, *ALICE, "--model", "all-MiniLM-L6-v2") as client:
            memories = [f"memory {n}" for n in range(299)] + ["word " * 2000]
            arguments = {"memories": memories, "expires_at": "2001-01-01T08:00:00Z"}
            done = await client.call_tool("add_memories", arguments, progress_callback=hear)
            told = done.structured_content
            assert [each["event"] for each in told["results"]] == ["ADD"] * 300
            cut = [place for place, each in enumerate(told["results"]) if "truncated" in each]
            assert cut == [299] and "1 of 300 are longer" in told["note"]
            assert "'2001-01-01T08:00:00Z' is in the past" in told["note"]
            assert texts(await call(client, "list_memories")) == []
            plain = await call(client, "add_memories", memories=["plain"])
            assert "note" not in plain

    asyncio.run(talk())
    values = [progress for progress, _, _ in heard]
    assert values == sorted(set(values)) and values[-1] == 300 and 256 in values
    assert heard[-1] == (300, 300, "300 of 300 are stored")


def test_what_is_no_message_is_answered(db):
    server = Server(COMMAND, "mcp", db, *ALICE, *ECHO)
    server.begin()
    for line, code in ((b"{broken\n", -32700), (b'{"jsonrpc": "2.0"}\n', -32600)):
        server.process.stdin.write(line)
        server.process.stdin.flush()
        answer = json.loads(server.process.stdout.readline())
        assert answer["id"] is None and answer["error"]["code"] == code
    server.add("still served")
    server.process.stdin.close()
    server.process.stdin = None
    assert server.ended() == (0, b"", b"")


KEY = "k" * 32


@contextmanager
def over_http(db, *options, key=None):
    environment = {**os.environ, **({"MEMWORKER_API_KEY": key} if key else {})}
    command = [COMMAND, "mcp", db, *ALICE, *ECHO, "--http", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process, process.stderr.readline().rpartition(" ")[2].strip()
    finally:
        process.kill()
        process.communicate()


def test_over_http_it_is_the_same_server(db):
    async def talk(url):
        async with Client(url) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == TOOLS
            await call(client, "add_memories", memories=["I like tea"])
        async with Client(url, mode="legacy") as client:
            assert texts(await call(client, "list_memories")) == ["I like tea"]
            assert "userId" in await refusal(client, "delete_memories", all=True, userId="bob")

    with over_http(db) as (process, url):
        asyncio.run(talk(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("key", "headers", "status", "said"),
    [
        (None, {"host": "evil.example"}, 421, "'evil.example'"),
        (None, {"origin": "http://evil.example"}, 403, "'http://evil.example'"),
        (None, {"origin": "null"}, 403, "'null'"),
        (KEY, {}, 401, "Bearer KEY"),
        (KEY, {"authorization": "Bearer wrong"}, 401, "Bearer KEY"),
        (KEY, {"authorization": f"Bearer {KEY}", "origin": "http://evil.example"}, 403, "evil"),
        (KEY, {"authorization": f"Bearer {KEY}", "host": "any.example"}, 200, ""),
        (None, {}, 200, ""),
    ],
)
def test_over_http_only_those_may_ask_who_may(key, headers, status, said):
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(answer, key, frozenset({"127.0.0.1", "localhost", "[::1]"}))
    transport = httpx.ASGITransport(guard)

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as client:
            return await client.post("/mcp", headers=headers, json={})

    told = asyncio.run(ask())
    assert told.status_code == status and said in told.text


def test_off_loopback_http_wants_a_key_and_options_want_http(db):
    for options, said in (
        (["--http", "--host", "0.0.0.0"], "MEMWORKER_API_KEY"),
        (["--port", "9"], "--http"),
    ):
        command = [COMMAND, "mcp", db, *ECHO, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 2 and said in done.stderr


def test_two_clients_share_one_database(db, errors):
    """Two processes add the same and different memories at once: nothing twice, nothing lost."""
    rounds = 15

    async def add_all(client, name):
        async def add(i):
            same, own = f"everybody knows {i}", f"{name} knows {i}"
            return await call(client, "add_memories", memories=[same, own])

        return await asyncio.gather(*(add(i) for i in range(rounds)))

    async def talk():
        args = ("mcp", db, *ALICE, *ECHO)
        async with connected(errors, *args) as one, connected(errors, *args) as two:
            told = await asyncio.gather(add_all(one, "one"), add_all(two, "two"))
            seen = [await call(client, "list_memories", limit=1000) for client in (one, two)]
            return [each for answers in told for each in answers], seen

    answers, seen = asyncio.run(talk())
    expected = [
        f"{who} {i}" for who in ("everybody knows", "one knows", "two knows") for i in range(rounds)
    ]
    assert [sorted(texts(each)) for each in seen] == [sorted(expected)] * 2
    results = [each for answer in answers for each in answer["results"]]
    assert len({each["id"] for each in results}) == 3 * rounds
    assert sum(each["event"] == "ADD" for each in results) == 3 * rounds
    assert Table.open(db, "memories").count() == 3 * rounds
    assert said(errors) == ""


def test_an_answered_add_is_there_for_everybody(db, errors):
    async def talk():
        async with connected(errors, "mcp", db, *ALICE, *ECHO) as client:
            for i in range(5):
                await call(client, "add_memories", memories=[f"text {i}"])
                listed = await asyncio.to_thread(run_json, "list", db, *ALICE)
                assert len(listed["results"]) == i + 1

    asyncio.run(talk())


def test_the_handshake_does_not_wait_for_the_memory(db, errors, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def talk():
        args = ("-c", WAITING, fifo, db)
        async with connected(errors, *args, command=sys.executable) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == TOOLS
            waiting = asyncio.create_task(call(client, "add_memories", memories=["early"]))
            # A call that is given up does not take the opening with it.
            given_up = asyncio.create_task(call(client, "list_memories"))
            assert "all=true" in await refusal(client, "delete_memories")
            given_up.cancel()
            assert not waiting.done() and not Path(db).exists()
            await asyncio.to_thread(fifo.write_text, "now")
            assert texts(await waiting) == ["early"]

    asyncio.run(talk())
    assert said(errors) == ""


def test_a_memory_that_cannot_be_opened_is_told_by_every_call_and_tried_again(db, errors):
    run_json("add", db, "x", *ALICE, *ECHO)
    hidden = Path(f"{db}.away")
    Path(db).rename(hidden)
    Path(db).write_text("in the way")

    async def talk():
        async with connected(errors, "mcp", db, *ALICE, *ECHO) as client:
            told = await refusal(client, "list_memories")
            assert db in told
            assert await refusal(client, "add_memories", memories=["y"]) == told
            Path(db).unlink()
            hidden.rename(db)
            assert texts(await call(client, "list_memories")) == ["x"]

    asyncio.run(talk())
    assert "could not be opened" in said(errors)


class Server:
    """A server process, spoken to line by line."""

    def __init__(self, *argv):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(list(map(str, argv)), stdin=pipe, stdout=pipe, stderr=pipe)
        self._requests = 0

    def ask(self, method, **params):
        self._requests += 1
        self.tell(method, id=self._requests, **params)
        answer = json.loads(self.process.stdout.readline())
        assert answer["jsonrpc"] == "2.0" and answer["id"] == self._requests
        return answer["result"]

    def tell(self, method, id=None, **params):
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        message |= {} if id is None else {"id": id}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def begin(self):
        self.ask(
            "initialize",
            protocolVersion="2025-06-18",
            capabilities={},
            clientInfo={"name": "test", "version": "0"},
        )
        self.tell("notifications/initialized")

    def add(self, text):
        return self.ask("tools/call", name="add_memories", arguments={"memories": [text]})

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def ended(self):
        """Wait for the end; returns the exit code, and what else came on stdout and stderr."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (None, 0),
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
    ],
)
def test_it_ends_with_its_client_or_by_a_signal_and_leaves_no_worker(db, end, code):
    server = Server(COMMAND, "mcp", db, *ALICE, *ECHO)
    server.begin()
    server.add("kept")
    workers = server.children()
    assert workers
    if end is None:
        server.process.stdin.close()
        server.process.stdin = None
    else:
        server.process.send_signal(end)
    assert server.ended() == (code, b"", b"")
    gone, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not alive
    assert Table.open(db, "memories").count() == 1


@pytest.mark.parametrize(("end", "code"), [(None, 0), (signal.SIGTERM, 143)])
def test_it_ends_while_the_memory_is_still_being_opened(db, tmp_path, end, code):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    server = Server(sys.executable, "-c", WAITING, fifo, db)
    server.begin()
    if end is None:
        server.process.stdin.close()
        server.process.stdin = None
    else:
        server.process.send_signal(end)
    assert server.ended() == (code, b"", b"")


def test_what_was_asked_for_at_a_signal_is_committed_once_or_not_at_all(db):
    server = Server(COMMAND, "mcp", db, *ALICE, *ECHO)
    server.begin()
    server.add("first")
    for i in range(20):
        arguments = {"memories": [f"late {i}"]}
        server.tell("tools/call", id=100 + i, name="add_memories", arguments=arguments)
    server.process.send_signal(signal.SIGTERM)
    code, out, err = server.ended()
    assert (code, err) == (143, b"")
    answers = [json.loads(line) for line in out.splitlines()]
    # What a signal overtook may be answered by an error of the protocol, or not at all.
    results = [answer for answer in answers if "result" in answer]
    answered = [answer["id"] for answer in results if not answer["result"].get("isError")]
    rows = Table.open(db, "memories").rows(columns=["text"])["text"].to_pylist()
    assert len(rows) == len(set(rows))
    assert {f"late {number - 100}" for number in answered} <= set(rows)


def test_the_configuration_of_the_docs_works(db, errors):
    page = (Path(__file__).parents[2] / "docs" / "MCP.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", page, re.S)
    entry = json.loads(block)["mcpServers"]["memory"]
    assert entry["command"] == "memworker"
    args = [db if argument.startswith("/") else argument for argument in entry["args"]]

    async def talk():
        async with connected(errors, *args) as client:
            assert all(f"`{tool.name}`" in page for tool in (await client.list_tools()).tools)
            facts = ["The invoice is due on Friday", "I am allergic to peanuts"]
            await call(client, "add_memories", memories=facts)
            found = await call(client, "search_memories", query="what must I not eat?", limit=1)
            assert texts(found) == facts[1:]

    asyncio.run(talk())


def test_without_the_package_it_says_how_to_get_it(tmp_path):
    (tmp_path / "mcp.py").write_text("raise ModuleNotFoundError('no mcp', name='mcp')")
    done = subprocess.run(
        [COMMAND, "mcp", str(tmp_path / "db")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2 and 'pip install "memworker[mcp]"' in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout
