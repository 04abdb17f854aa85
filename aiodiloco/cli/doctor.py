"""`aiodiloco doctor`: whether this machine, a store and Modal are fit to train with."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import secrets
import statistics
import time
from typing import TYPE_CHECKING, Annotated

import anyio
import typer
from rich.table import Table

from aiodiloco.cli.exits import fail, run_command
from aiodiloco.cli.options import AsJson  # noqa: TC001 - typer reads it at run time
from aiodiloco.cli.view import new_console
from aiodiloco.errors import StoreError
from aiodiloco.store import open_store, probe
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiodiloco.store import Store

__all__ = ["Finding", "doctor"]

_PACKAGES = ("torch", "aiobotocore", "modal", "safetensors", "xxhash")
_BOUND_S = 60.0
_NUM_LOOKS = 10
_OBJECT_BYTES, _NUM_OBJECTS = 8 << 20, 8
_SLOW_S = 0.5


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was checked.
        is_good: Whether training can rely on it.
        found: In words, with the remedy where it is not good.
    """

    name: str
    is_good: bool
    found: str


def doctor(
    store: Annotated[
        str | None, typer.Argument(envvar="AIODILOCO_STORE", help="A store to examine: 128 MiB go there and back.")
    ] = None,
    *,
    modal: Annotated[bool, typer.Option("--modal", help="Also ask whether Modal takes the token.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check what training depends on; exit with 1 if something is not as it must be."""

    async def work() -> None:
        findings = [_python(), *map(_package, _PACKAGES), _device()]
        if store is not None:
            findings += await _examine_store(store)
        if modal:
            findings.append(await _bounded("Modal token", _modal))
        if as_json:
            typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
        else:
            new_console().print(_table(findings))
        if bad := [finding.name for finding in findings if not finding.is_good]:
            fail(f"not fit: {', '.join(bad)}")

    run_command(work)


def _python() -> Finding:
    return Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        extra = {"aiobotocore": "s3", "modal": "modal"}.get(name, "torch")
        return Finding(name, True, f"not installed; pip install 'aiodiloco[{extra}]' where it is needed")


def _device() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("devices", True, "not known without torch")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("devices", True, ", ".join([*names, f"{os.cpu_count()} CPU cores"]))


async def _examine_store(uri: str) -> list[Finding]:
    findings: list[Finding] = []
    try:
        with anyio.fail_after(4 * _BOUND_S):
            async with open_store(uri) as store:
                findings.append(await _bounded("store guarantees", lambda: _guarantees(store)))
                if findings[0].is_good:
                    findings.append(await _bounded("store latency", lambda: _latency(store)))
                    findings.append(await _bounded("store bandwidth", lambda: _bandwidth(store)))
    except (StoreError, TimeoutError) as exc:
        findings.append(Finding("store", False, str(exc) or "it does not answer"))
    return findings


async def _bounded(name: str, check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        with anyio.fail_after(_BOUND_S):
            return await check()
    except TimeoutError:
        return Finding(name, False, f"no answer within {_BOUND_S:g} s")
    except StoreError as exc:
        return Finding(name, False, str(exc))


async def _guarantees(store: Store) -> Finding:
    await probe(store)
    return Finding("store guarantees", True, f"{store.uri}: atomic reads and writes, one winner, listings in order")


async def _latency(store: Store) -> Finding:
    key = f"doctor/{secrets.token_hex(8)}"
    seconds: list[float] = []
    try:
        await store.put(key, b"?")
        for _ in range(_NUM_LOOKS):
            began = time.perf_counter()
            await store.get(key)
            seconds.append(time.perf_counter() - began)
    finally:
        await _delete(store, [key])
    median = statistics.median(seconds)
    slow = "" if median < _SLOW_S else "; train with a store that is nearer: every round takes several"
    return Finding(
        "store latency", True, f"{median * 1e3:.1f} ms to read a byte, at most {max(seconds) * 1e3:.1f}{slow}"
    )


async def _bandwidth(store: Store) -> Finding:
    data = os.urandom(_OBJECT_BYTES)
    prefix = f"doctor/{secrets.token_hex(8)}"
    keys = [f"{prefix}/{number}" for number in range(_NUM_OBJECTS)]
    try:
        began = time.perf_counter()
        await map_concurrently(lambda key: store.put(key, data), keys)
        written = time.perf_counter()
        found = await map_concurrently(store.get, keys)
        read = time.perf_counter()
    finally:
        await _delete(store, keys)
    total = _NUM_OBJECTS * _OBJECT_BYTES / 1e6
    if any(object_ != data for object_ in found):
        return Finding("store bandwidth", False, "what was read is not what was written: do not train with this store")
    up, down = total / (written - began), total / (read - written)
    return Finding("store bandwidth", True, f"{up:,.0f} MB/s up, {down:,.0f} MB/s down, {_NUM_OBJECTS} objects at once")


async def _delete(store: Store, keys: list[str]) -> None:
    with anyio.move_on_after(10, shield=True), contextlib.suppress(StoreError):
        await map_concurrently(store.delete, keys)


async def _modal() -> Finding:
    try:
        import modal
    except ImportError:
        return Finding("Modal token", False, "modal is not installed: pip install 'aiodiloco[modal]'")
    try:
        client = await modal.Client.from_env.aio()
        await client.hello.aio()  # type: ignore[no-untyped-call]  # modal gives it no types
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is what was found
        return Finding("Modal token", False, f"{type(exc).__name__}: {exc}")
    return Finding("Modal token", True, "Modal takes it")


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row("ok" if finding.is_good else "NO", finding.name, finding.found)
    return table
