"""S3 clients side by side: throughput and CPU time of PUT and GET, in interleaved rounds against one fast server.

    python benchmarks/s3_clients.py [--mib 1 8 16 64] [--rounds 9] [--clients store obstore ...]

The server is nginx (`apt-get install nginx-light`) with objects in memory, on this machine and so on the same cores:
it burns CPU time that a client cannot have, and bounds what any client can reach. "raw HTTP" is that bound: the same
bytes over bare sockets, without S3. Run as root on Linux, the memory is a tmpfs of huge pages, which halves the
server's own time for a PUT; the output says whether it was.

Every client moves the same objects, 16 at a time, and has them in memory afterwards; only the store and "raw HTTP"
put them where the caller wants them: into memory of whole pages, used before, as the library takes for chunks (where
it starts matters: 16 bytes off, this processor copies a third slower). "store, new memory" is the store without
that: like the other clients it returns memory of its own, new each time. "store, stock session" is `S3Store` on
aiobotocore's own HTTP session.

MB are 1e6 bytes. CPU seconds are the client process's, all threads, per 1e9 bytes. Figures are medians over the rounds;
ratios are medians of the ratios within each round. Prints tables; writes benchmarks/out/s3_clients.{md,json,png}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import anyio

from aiodiloco.demo.figures import BLUE, GREEN, GREY, ORANGE, picture
from aiodiloco.store.pages import new_memory
from aiodiloco.testing.s3 import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

_OUT = Path(__file__).parent / "out"
_MIB = 2**20
_CONCURRENCY = 16
_ROUND_MIB = 128  # moved by each client in each round, in at least 8 objects
_BUCKET = "bucket"

_NGINX = """
daemon off; {user} worker_processes 2; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000000; client_max_body_size 0;
  etag off; add_header ETag '"0"' always;  # clients insist on one
  client_body_buffer_size 1m; client_body_temp_path {data}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  server {{
    listen 127.0.0.1:{port} sndbuf=512k;  # left to the kernel, it is the server that GET measures
    root {data};
    location = /bucket {{ default_type application/xml; return 200 "<ListBucketResult></ListBucketResult>"; }}
    location / {{ dav_methods PUT; create_full_put_path on; }}
  }}
}}
"""


@dataclass(frozen=True)
class Client:
    """One client under test.

    Attributes:
        put: Writes bytes, given as the type the client likes best, under a key.
        get: Reads an object; the view may be used as its memory. Returns the object's bytes, wherever they are.
    """

    put: Callable[[str, bytes], Awaitable[object]]
    get: Callable[[str, memoryview], Awaitable[bytes | memoryview]]


_Make: TypeAlias = "Callable[[str], AbstractAsyncContextManager[Client]]"


def _store(*, stock: bool = False, own_memory: bool = False) -> _Make:
    @asynccontextmanager
    async def make(url: str) -> AsyncIterator[Client]:
        from aiobotocore.httpsession import AIOHTTPSession

        from aiodiloco.store.s3 import S3Store

        session = AIOHTTPSession if stock else None
        async with S3Store(_BUCKET, endpoint_url=url, concurrency=_CONCURRENCY, http_session=session) as store:
            yield Client(store.put, lambda key, view: store.get(key, into=None if own_memory else view))

    return make


@asynccontextmanager
async def _aiobotocore(url: str) -> AsyncIterator[Client]:
    """As its documentation shows it: default settings, bytes in, `read()` out."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(s3={"addressing_style": "path"}, max_pool_connections=_CONCURRENCY)
    async with get_session().create_client("s3", endpoint_url=url, config=config) as client:

        async def get(key: str, _: memoryview) -> bytes:
            response = await client.get_object(Bucket=_BUCKET, Key=key)
            data: bytes = await response["Body"].read()
            return data

        yield Client(lambda key, data: client.put_object(Bucket=_BUCKET, Key=key, Body=data), get)


@asynccontextmanager
async def _obstore(url: str) -> AsyncIterator[Client]:
    import obstore
    from obstore.store import S3Store

    options = {"allow_http": True}
    store = S3Store(
        _BUCKET, endpoint=url, virtual_hosted_style_request=False, unsigned_payload=True, client_options=options
    )

    async def get(key: str, _: memoryview) -> memoryview:
        return memoryview(await (await obstore.get_async(store, key)).bytes_async())

    yield Client(lambda key, data: obstore.put_async(store, key, data, use_multipart=False), get)


@asynccontextmanager
async def _boto3(url: str) -> AsyncIterator[Client]:
    """Default settings, a thread for each transfer."""
    import boto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, max_pool_connections=_CONCURRENCY)
    client = boto3.client("s3", endpoint_url=url, config=config)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(_CONCURRENCY) as pool:

        def put(key: str, data: bytes) -> None:
            client.put_object(Bucket=_BUCKET, Key=key, Body=data)

        def get(key: str) -> bytes:
            data: bytes = client.get_object(Bucket=_BUCKET, Key=key)["Body"].read()
            return data

        yield Client(
            lambda key, data: loop.run_in_executor(pool, put, key, data),
            lambda key, _: loop.run_in_executor(pool, get, key),
        )
    client.close()


@asynccontextmanager
async def _raw(url: str) -> AsyncIterator[Client]:
    """Bare HTTP over sockets, with nothing checked: what the server and this event loop allow."""
    loop = asyncio.get_running_loop()
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    idle: list[socket.socket] = []

    async def ask(head: str, body: bytes, view: memoryview) -> None:
        sock = idle.pop() if idle else await _connected(loop, address)
        await loop.sock_sendall(sock, f"{head}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        await loop.sock_sendall(sock, body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += await loop.sock_recv(sock, 4096)
        rest = received.partition(b"\r\n\r\n")[2]
        view[: len(rest)] = rest
        filled = len(rest)
        while filled < len(view):
            filled += await loop.sock_recv_into(sock, view[filled:])
        idle.append(sock)

    async def get(key: str, view: memoryview) -> memoryview:
        await ask(f"GET /{_BUCKET}/{key} HTTP/1.1", b"", view)
        return view

    yield Client(lambda key, data: ask(f"PUT /{_BUCKET}/{key} HTTP/1.1", data, memoryview(bytearray())), get)
    for sock in idle:
        sock.close()


async def _connected(loop: asyncio.AbstractEventLoop, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await loop.sock_connect(sock, address)
    return sock


_CLIENTS: dict[str, _Make] = {
    "obstore": _obstore,
    "store": _store(),
    "store, new memory": _store(own_memory=True),
    "store, stock session": _store(stock=True),
    "aiobotocore": _aiobotocore,
    "boto3 in threads": _boto3,
    "raw HTTP": _raw,
}


_COLORS = {
    "obstore": ORANGE,
    "store": BLUE,
    "store, new memory": "#004B7A",
    "store, stock session": "#56B4E9",
    "aiobotocore": GREEN,
    "boto3 in threads": "#E69F00",
    "raw HTTP": GREY,
}


@dataclass(frozen=True)
class Figures:
    """What one client did at one size, medians over the rounds."""

    client: str
    operation: str
    mib: int
    mb_per_s: float
    cpu_s_per_gb: float
    of_obstore: float | None
    of_aiobotocore: float | None


@contextmanager
def nginx(*, huge_pages: bool) -> Iterator[str]:
    """Run nginx with an empty bucket in memory; yield its URL.

    Raises:
        SystemExit: there is no nginx, or it cannot take a PUT.
    """
    if (binary := shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")) is None:
        raise SystemExit("this benchmark needs nginx with its DAV module: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        data = Path(folder, "data")
        Path(data, _BUCKET).mkdir(parents=True)

        def command(port: int) -> list[str]:
            user = "user root;" if os.geteuid() == 0 else ""
            config = Path(folder, "nginx.conf")
            config.write_text(_NGINX.format(dir=folder, data=data, port=port, user=user))
            run = [binary, "-p", folder, "-e", f"{folder}/error.log", "-c", str(config)]
            return [*_with_huge_pages(data), *run] if huge_pages else run

        with served(command) as url:
            request = urllib.request.Request(f"{url}/{_BUCKET}/probe", data=b"x", method="PUT")
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()
            except OSError as exc:
                raise SystemExit(f"nginx takes no PUT ({exc}): its DAV module is missing; see {binary} -V") from exc
            yield url


def _with_huge_pages(folder: Path) -> list[str]:
    """Return what to put before a command so that `folder` is a tmpfs of huge pages, for that command alone."""
    script = f'mount -t tmpfs -o huge=within_size,size=4g tmpfs "$0" && mkdir "$0/{_BUCKET}" && exec "$@"'
    return [shutil.which("unshare") or "unshare", "--mount", "sh", "-c", script, str(folder)]


def has_huge_pages() -> bool:
    """Return whether we may mount a tmpfs of huge pages in a namespace of our own: as root, on Linux."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [*_with_huge_pages(Path(folder)), "true"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


async def _one_round(client: Client, operation: str, data: bytes, views: list[memoryview]) -> tuple[float, float]:
    """Return (seconds, CPU seconds) of moving all objects once."""
    turns = anyio.CapacityLimiter(_CONCURRENCY)

    async def move(index: int) -> None:
        key = f"{len(data)}-{index}"
        async with turns:
            await (client.put(key, data) if operation == "PUT" else client.get(key, views[index]))

    start, cpu_start = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as tasks:
        for index in range(len(views)):
            tasks.start_soon(move, index)
    return time.perf_counter() - start, time.process_time() - cpu_start


async def _check(name: str, client: Client, data: bytes, view: memoryview) -> None:
    """Move one object there and back: warms the client up, and shows that it does what it is measured at."""
    view[:] = bytes(len(view))
    await client.put("check", data)
    if bytes(await client.get("check", view)) != data:
        raise SystemExit(f"{name} read other bytes than it had written")


async def measure(url: str, names: list[str], mib: int, rounds: int) -> list[Figures]:
    """Return the figures of each client for PUT and GET of objects of `mib` MiB."""
    data = os.urandom(_MIB) * mib
    views = [new_memory(len(data)) for _ in range(max(8, _ROUND_MIB // mib))]
    for view in views:
        view[:] = data  # so that nobody's first GET pays for the pages
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(_CLIENTS[name](url)) for name in names}
        for name, client in clients.items():
            await _check(name, client, data, views[0])
            await _one_round(client, "PUT", data, views)
        for turn in range(rounds):
            for operation in ("PUT", "GET"):
                for name in names[turn % len(names) :] + names[: turn % len(names)]:  # nobody is always first
                    run = await _one_round(clients[name], operation, data, views)
                    runs.setdefault((operation, name), []).append(run)
    return [_figures(runs, operation, name, mib, len(data) * len(views)) for operation, name in sorted(runs)]


def _figures(
    runs: dict[tuple[str, str], list[tuple[float, float]]], operation: str, name: str, mib: int, num_bytes: int
) -> Figures:
    mine = runs[operation, name]

    def ratio(other: str) -> float | None:
        theirs = runs.get((operation, other))
        return theirs and statistics.median(b[0] / a[0] for a, b in zip(mine, theirs, strict=True))

    return Figures(
        client=name,
        operation=operation,
        mib=mib,
        mb_per_s=num_bytes / 1e6 / statistics.median(seconds for seconds, _ in mine),
        cpu_s_per_gb=statistics.median(cpu for _, cpu in mine) / num_bytes * 1e9,
        of_obstore=ratio("obstore"),
        of_aiobotocore=ratio("aiobotocore"),
    )


def table(figures: list[Figures]) -> str:
    """Return the figures as a Markdown table, the fastest client first within each size and operation."""
    lines = ["| | client | MB/s | CPU s/GB | × obstore | × aiobotocore |", "|---|---|---|---|---|---|"]
    for each in sorted(figures, key=lambda f: (f.mib, f.operation == "GET", -f.mb_per_s)):
        ratios = [f"{ratio:.2f}" if ratio else "" for ratio in (each.of_obstore, each.of_aiobotocore)]
        lines.append(
            f"| {each.operation} {each.mib} MiB | {each.client} | {each.mb_per_s:.0f} | {each.cpu_s_per_gb:.2f} | "
            f"{ratios[0]} | {ratios[1]} |"
        )
    return "\n".join(lines)


def _draw(figures: list[Figures], names: list[str], path: Path) -> None:
    sizes = sorted({each.mib for each in figures})
    footnote = "Medians of interleaved rounds, 16 objects at a time; client and server share the same cores."
    with picture(path, inches=(11, 7.5), footnote=footnote) as figure:
        grid = figure.subplots(2, 2, sharex=True)
        for column, operation in enumerate(("PUT", "GET")):
            for row, (field, label) in enumerate((("mb_per_s", "MB/s"), ("cpu_s_per_gb", "CPU s/GB of the client"))):
                axes = grid[row][column]
                for index, name in enumerate(names):
                    values = {e.mib: getattr(e, field) for e in figures if (e.client, e.operation) == (name, operation)}
                    places = [place + (index - (len(names) - 1) / 2) * 0.12 for place in range(len(sizes))]
                    color = _COLORS.get(name, f"C{index}")
                    axes.bar(places, [values[size] for size in sizes], width=0.11, label=name, color=color)
                axes.set_xticks(range(len(sizes)), [f"{size} MiB" for size in sizes])
                axes.set_title(f"{operation}, {label}")
        grid[0][0].legend(frameon=False, fontsize="small")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 8, 16, 64], help="sizes of objects")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clients", nargs="+", choices=_CLIENTS, default=list(_CLIENTS))
    args = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_REGION="us-east-1")
    os.environ.update(AWS_DEFAULT_REGION="us-east-1", NO_PROXY="127.0.0.1")
    figures, huge_pages = [], has_huge_pages()
    print(f"nginx on this machine's {os.cpu_count()} cores, huge pages: {'yes' if huge_pages else 'no'}")
    with nginx(huge_pages=huge_pages) as url:
        for mib in args.mib:
            figures += asyncio.run(measure(url, args.clients, mib, args.rounds))
            print(table([each for each in figures if each.mib == mib]), flush=True)
    _OUT.mkdir(exist_ok=True)
    packages = {name: version(name) for name in ("aiobotocore", "boto3", "obstore")}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    document = {
        "arguments": vars(args),
        "huge_pages": huge_pages,
        **machine,
        "packages": packages,
        "load": os.getloadavg(),
    }
    path = _OUT / "s3_clients"
    path.with_suffix(".json").write_text(json.dumps({**document, "figures": [asdict(f) for f in figures]}, indent=1))
    path.with_suffix(".md").write_text(table(figures) + "\n")
    _draw(figures, args.clients, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
