"""An S3 server in a process of its own, and a proxy before it that fails by a seeded schedule."""

import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest
from zarr.core.sync import sync
from zarr.storage import FsspecStore, ObjectStore

BUCKET = "bucket"
KEY, SECRET = "AKIAOURTESTKEY", "a/secret+that+nothing/may+store"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nowhere",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    "AWS_MAX_ATTEMPTS": "1",
    "NO_PROXY": "127.0.0.1",
}

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Bucket:
    """A bucket on a server: what lies there can be looked at and damaged, past all clients."""

    def __init__(self, port: int, name: str = BUCKET) -> None:
        boto3: Any = pytest.importorskip("boto3")
        self.url, self.port, self.name = f"http://127.0.0.1:{port}", port, name
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        self._client.create_bucket(Bucket=name)

    def digests(self, prefix: str = "") -> dict[str, str]:
        """MD5 of all objects."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        found = (each for page in pages for each in page.get("Contents", []))
        return {each["Key"]: each["ETag"].strip('"') for each in found}

    def names(self, prefix: str = "") -> list[str]:
        return list(self.digests(prefix))

    def get(self, key: str) -> bytes:
        body: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def put(self, key: str, body: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=body)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def everything(self, prefix: str = "") -> dict[str, bytes]:
        return {key: self.get(key) for key in self.names(prefix)}

    def close(self) -> None:
        self._client.close()


@contextmanager
def serve() -> Iterator[Bucket]:
    """A server with a bucket; it ends with this process, however that ends."""
    pytest.importorskip("moto.server")
    command = [sys.executable, "-c", _SERVER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        bucket = Bucket(int(process.stdout.readline()))
        try:
            yield bucket
        finally:
            bucket.close()
            process.stdin.close()


class Proxy(ThreadingHTTPServer):
    """Passes requests on, and answers, cuts or loses some of them.

    slow : 503 SlowDown instead of an answer. cut : the connection ends in the middle of a body.
    late : 20 ms. lost : the request is passed on and succeeds, but its answer is not (of a PUT).
    silent : as lost, but of any request, and after two seconds. denied : 403, unless the request is
    signed with our key. refused : 412. blind : a condition is overlooked. Each a share of the
    requests in which `only` is found; after `most` faults in all the proxy only passes on.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self, port: int, seed: int = 0, only: str = "", most: int = 10**9, **shares: float
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.only, self.most, self.shares = port, only, most, shares
        self.done: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, method: str, path: str) -> str:
        """What happens to the next request."""
        with self._lock:
            if not re.search(self.only, f"{method} {path}") or self.done.total() == self.most:
                return ""
            drawn = self._random.random()
            for name, share in self.shares.items():
                drawn -= share
                if drawn < 0 and (name != "lost" or method == "PUT"):
                    self.done[name] += 1
                    return name
        return ""

    @contextmanager
    def calm(self) -> Iterator[None]:
        """No faults meanwhile."""
        shares, self.shares = self.shares, {}
        yield
        self.shares = shares

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may go when it likes."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Proxy

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _pass_on(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        fault = self.server.fault(self.command, self.path)
        if fault == "cut" and self.command == "PUT":
            self.rfile.read(size // 2)
            return self._hang_up()
        body = self.rfile.read(size)
        if fault == "denied" and f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            return self._refuse(403, "InvalidAccessKeyId")
        if fault == "refused":
            return self._refuse(412, "PreconditionFailed")
        if fault == "slow":
            return self._refuse(503, "SlowDown")
        if fault == "late":
            time.sleep(0.02)
        if fault == "blind":
            del self.headers["If-None-Match"]
        upstream = HTTPConnection("127.0.0.1", self.server.upstream)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        answer = upstream.getresponse()
        payload, headers = answer.read(), answer.getheaders()
        if answer.chunked:  # and is passed on in one piece
            headers.append(("Content-Length", str(len(payload))))
        upstream.close()
        if fault == "silent":
            time.sleep(2)
        if fault in ("lost", "silent"):
            return self._hang_up()
        if fault == "cut":
            payload = payload[: len(payload) // 2]
        self._answer(answer.status, headers, payload)
        return self._hang_up() if fault == "cut" else None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        self._answer(status, headers, b"" if self.command == "HEAD" else body)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


# ------------------------------------------------------------------------------- the clients
def point_to(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs are served from there, to clients that are still to be made."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keys for all clients, a short patience for s3fs's, which are closed in the end."""
    s3fs: Any = pytest.importorskip("s3fs")
    clients: dict[int, Any] = {}
    connect = s3fs.S3FileSystem.set_session

    async def noted(*args: Any, **kwargs: Any) -> Any:
        client = await connect(*args, **kwargs)
        clients[id(client)] = client
        return client

    async def close() -> None:
        for client in clients.values():
            await client.close()

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    monkeypatch.setattr(s3fs.S3FileSystem, "set_session", noted)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    sync(close())


def url(path: str) -> str:
    """For s3fs, which takes keys and server from the environment."""
    return f"s3://{BUCKET}/{path}"


def by_s3fs(
    server: str, path: str = "", key: str = KEY, secret: str = SECRET, patience: float = 60
) -> Any:
    """A store of s3fs, with a client of its own, which waits so many seconds for an answer."""
    options: dict[str, Any] = {
        "endpoint_url": server,
        "key": key,
        "secret": secret,
        "skip_instance_cache": True,
    }
    options |= {"config_kwargs": {"read_timeout": patience}}
    return FsspecStore.from_url(url(path).rstrip("/"), storage_options=options)


def by_obstore(
    server: str, path: str = "", key: str = KEY, secret: str = SECRET, patience: float = 60
) -> Any:
    """A store of obstore, which gives up soon."""
    stores: Any = pytest.importorskip("obstore.store")
    waits = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=50)}
    store = stores.S3Store(
        BUCKET,
        prefix=path or None,
        endpoint=server,
        access_key_id=key,
        secret_access_key=secret,
        region="us-east-1",
        client_options={"allow_http": True, "timeout": timedelta(seconds=patience)},
        retry_config={"max_retries": 2, "backoff": waits | {"base": 2}},
    )
    return ObjectStore(store)


CLIENTS: dict[str, Callable[..., Any]] = {"s3fs": by_s3fs, "obstore": by_obstore}
