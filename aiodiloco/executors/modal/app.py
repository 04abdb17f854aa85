"""The app of a `ModalExecutor`: one function that runs any entrypoint, deployed with the sources it needs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import anyio
import modal
import modal.exception

from aiodiloco.errors import EntrypointError, ExecutorError
from aiodiloco.executors.modal.errors import explain
from aiodiloco.executors.modal.functions import deploy
from aiodiloco.executors.modal.outcome import is_transient
from aiodiloco.executors.modal.pauses import Pauses
from aiodiloco.executors.modal.replica import run_replica
from aiodiloco.executors.modal.slots import Slots
from aiodiloco.executors.modal.sources import Source, add_sources, source_of
from aiodiloco.executors.modal.target import Replica, Variants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiodiloco.executors.port import SpawnRequest

__all__ = ["AnyFunctionApp"]

_STOP_BOUND_S = 10.0
# What a replica imports that is not shipped.
_NEEDS = ("aiobotocore>=3.9", "anyio>=4.14", "safetensors>=0.8", "torch>=2.6", "xxhash>=3.5")


class AnyFunctionApp:
    """A `Target`: deploys itself before the first launch, and again when an entrypoint needs sources it lacks.

    Attributes:
        name: Of the deployed app.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        image: modal.Image | None,
        modules: Sequence[str],
        client: modal.Client | None,
    ) -> None:
        self.name = name
        self._options = dict(options)
        self._image = image
        self._client = client
        self._turn = Slots(1)
        self._sources = {Source("", package=module) for module in modules}
        self._app: modal.App | None = None
        self._variants = Variants(self._make()[1])  # made now, so that bad options are refused at construction

    def check(self, request: SpawnRequest) -> None:
        """Refuse what cannot be shipped or run."""
        if request.entrypoint is None:
            raise EntrypointError('entrypoint is required here: give a function or "module:function"')
        source_of(request.entrypoint)
        self._variants.check(request.gpu, request.timeout_s)

    async def prepare(self, request: SpawnRequest) -> None:
        """Deploy the app, unless it is deployed with the sources that the entrypoint needs."""
        assert request.entrypoint is not None
        source = source_of(request.entrypoint).files()
        async with self._turn.hold():
            if self._app is not None and source in self._sources:
                return
            self._sources.add(source)
            app, function = self._make()
            await deploy(app, self._client)
            self._app, self._variants = app, Variants(function)

    def replica(self, request: SpawnRequest) -> Replica:
        """Return the call that imports and runs the entrypoint."""
        assert request.entrypoint is not None
        function = self._variants.get(request.gpu, request.timeout_s)
        entrypoint = source_of(request.entrypoint).entrypoint
        return Replica(function, {"rank": request.rank, "entrypoint": entrypoint, "arguments": request.entrypoint_args})

    async def stop(self) -> None:
        """Stop the app if it is deployed; bounded, and not interrupted by anyio scopes."""
        with anyio.move_on_after(_STOP_BOUND_S, shield=True):
            async with self._turn.hold():
                if self._app is not None:
                    await self._stop(self._app)
                    self._app = None
                return
        raise ExecutorError(f"Modal did not confirm that it stopped {self.name}; run `modal app stop {self.name}`")

    async def _stop(self, app: modal.App) -> None:
        pauses = Pauses()
        while True:
            try:
                await app.stop.aio(client=self._client)
            except Exception as exc:
                if not is_transient(exc):
                    raise explain(exc, f"stopping {self.name}; run `modal app stop {self.name}`") from exc
            else:
                return
            await pauses.wait()

    def _make(self) -> tuple[modal.App, modal.Function[..., Any, Any]]:
        app = modal.App(self.name)
        image = add_sources(self._image or _default_image(), self._sources)
        try:
            return app, app.function(image=image, name="replica", retries=0, **self._options)(run_replica)
        except modal.exception.InvalidError as exc:
            raise ValueError(f"Modal does not take {self._options}: {exc}") from exc


def _default_image() -> modal.Image:
    return modal.Image.debian_slim(f"{sys.version_info.major}.{sys.version_info.minor}").pip_install(*_NEEDS)
