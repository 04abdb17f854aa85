"""`ModalSpawnExecutor`: replicas as calls of the user's own Modal function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import modal

from aiodiloco.errors import EntrypointError
from aiodiloco.executors.core import Executor
from aiodiloco.executors.entrypoint import check_signature, select_taken
from aiodiloco.executors.modal.backend import ModalBackend
from aiodiloco.executors.modal.functions import (
    app_to_deploy,
    check_client,
    check_function,
    check_grace,
    dashboard_url,
    deploy,
    name_of,
    raw_function,
)
from aiodiloco.executors.modal.slots import Slots
from aiodiloco.executors.modal.target import Replica, Variants

if TYPE_CHECKING:
    from aiodiloco.executors.port import SpawnRequest
    from aiodiloco.executors.serverless import Entrypoint
    from aiodiloco.records import JSON, ReplicaHandle

__all__ = ["ModalSpawnExecutor"]


class ModalSpawnExecutor(Executor):
    """Runs replicas as calls of your own Modal function, with the image, GPU, volumes and secrets it was given.

        @app.function(image=image, gpu="H100", timeout=3600, secrets=[bucket])
        def train(*, rank: int, world_size: int) -> dict: ...

        async with app.run(detach=True):
            executor = ModalSpawnExecutor(train)
            handles = await executor.launch_replicas(4, entrypoint_args={"world_size": 4})

    Every replica is called as `function(rank=…, **entrypoint_args)`. `launch_replicas(gpu=…, timeout=…)` override what
    the decorator says, and otherwise the decorator's hold. The function must be on Modal when replicas are launched:
    launch inside `app.run()`, deploy it, or give `deploy=True`. Replicas of `app.run()` end with it, unless it was
    given `detach=True`.

    Modal may preempt a replica and call the function again with the same arguments, unseen by the caller. Join the run
    with `aiodiloco.join`, which never lets two processes act for one rank, and decorate with `retries=0`: with more, a
    failure is seen only after the last try.

    Polling says `running` also for a replica that still waits for a GPU. A run id that was used before is noticed by
    the executor that used it only. When this process dies within `grace` after a cancellation, the replica has been
    asked to end, and nobody kills it until its timeout.

    Args:
        modal_function: A function decorated with `@app.function(…)`, or `modal.Function.from_name(…)`.
        deploy: Deploy the function's app, once, before the first launch. The app needs a name, and stays deployed.
        client: The Modal client to ask with; by default the one of the environment's token.
        grace: Seconds between asking a cancelled replica to end and killing its container.
    """

    def __init__(
        self,
        modal_function: modal.Function[..., Any, Any],
        *,
        deploy: bool = False,
        client: modal.Client | None = None,
        grace: float = 3.0,
    ) -> None:
        check_function(modal_function)
        check_client(client)
        self._own = _OwnFunction(modal_function, app_to_deploy(modal_function) if deploy else None, client)
        self._modal = ModalBackend(self._own, client=client, grace_s=check_grace(grace))
        super().__init__(self._modal)

    async def launch_replicas(
        self,
        n_replicas: int,
        entrypoint: Entrypoint | None = None,
        entrypoint_args: Mapping[str, JSON] | None = None,
        *,
        gpu: str | None = None,
        timeout: float | None = None,
        run_id: str | None = None,
    ) -> list[ReplicaHandle]:
        """Call the function for `n_replicas` ranks and return their handles in rank order; see `ServerlessExecutor`.

        Args:
            n_replicas: At least 1.
            entrypoint: None, or the function that was decorated, or its name: nothing else runs here.
            entrypoint_args: JSON values. The rank is passed as `rank`; a `rank_env` is dropped.
            gpu: In Modal's words, e.g. `"H100:2"`. None: the decorator's.
            timeout: Seconds, rounded up to whole ones; at most 24 hours. None: the decorator's.
            run_id: Shared name of the group; a fresh one by default.
        """
        return await super().launch_replicas(
            n_replicas, entrypoint, entrypoint_args, gpu=gpu, timeout=timeout, run_id=run_id
        )

    async def plan_replicas(
        self,
        n_replicas: int,
        entrypoint: Entrypoint | None = None,
        entrypoint_args: Mapping[str, JSON] | None = None,
        *,
        gpu: str | None = None,
        timeout: float | None = None,
        run_id: str | None = None,
        offered: Mapping[str, JSON] | None = None,
    ) -> list[SpawnRequest]:
        """Return what `launch_replicas` would ask of Modal; see `Executor.plan_replicas`."""
        args = entrypoint_args
        if isinstance(args, Mapping):
            args = {name: value for name, value in args.items() if name != "rank_env"}
        if self._own.is_named(entrypoint):
            entrypoint = None
        return await super().plan_replicas(
            n_replicas,
            entrypoint,
            args,
            gpu=gpu,
            timeout=timeout,
            run_id=run_id,
            offered=self._own.select_taken(offered or {}),
        )

    async def close(self) -> None:
        """Wait for the cancellations under way, and close the connection they may have opened. Idempotent.

        Every replica whose cancellation was asked for in this event loop has been told to end, and if it did not
        within `grace`, Modal has been told to kill its container. Takes at most `grace` + 13 s and is not interrupted
        by anyio scopes. Other replicas go on.
        """
        try:
            await super().close()
        finally:
            await self._modal.close()

    def dashboard_url(self, handle: ReplicaHandle) -> str:
        """Return the address of the replica's call on Modal's dashboard."""
        self._check_handle(handle)
        return dashboard_url(handle)


class _OwnFunction:
    """A `Target`: the function as the user decorated it."""

    def __init__(
        self, function: modal.Function[..., Any, Any], app: modal.App | None, client: modal.Client | None
    ) -> None:
        self._function = function
        self._variants = Variants(function)
        self._app = app
        self._client = client
        self._turn = Slots(1)
        self._is_deployed = False

    def is_named(self, entrypoint: Entrypoint | None) -> bool:
        """Return whether `entrypoint` is this function: as Modal has it, as Python has it, or by name."""
        if isinstance(entrypoint, modal.Function):
            return entrypoint is self._function
        if entrypoint is None or isinstance(entrypoint, str):
            return entrypoint is not None and entrypoint == name_of(self._function)
        given = f"{getattr(entrypoint, '__module__', None)}:{getattr(entrypoint, '__qualname__', None)}"
        return given == name_of(self._function)

    def select_taken(self, offered: Mapping[str, JSON]) -> Mapping[str, JSON]:
        """Return those of the `offered` arguments that the function has parameters for; all, if nobody knows."""
        raw = raw_function(self._function)
        return offered if raw is None else select_taken(raw, offered)

    def check(self, request: SpawnRequest) -> None:
        """Refuse another entrypoint, and arguments that Modal or the function does not take."""
        own = name_of(self._function) or repr(self._function)
        if request.entrypoint is not None:
            raise EntrypointError(
                f"entrypoint {request.entrypoint}: this executor calls {own}; leave entrypoint out, or use "
                "ModalExecutor, which runs any function of an importable module"
            )
        if (raw := raw_function(self._function)) is not None:
            check_signature(own, raw, request.entrypoint_args)
        self._variants.check(request.gpu, request.timeout_s)

    async def prepare(self, request: SpawnRequest) -> None:
        """Deploy the app if that is wanted and not done yet."""
        del request
        if self._app is None:
            return
        async with self._turn.hold():
            if not self._is_deployed:
                await deploy(self._app, self._client)
                self._is_deployed = True

    def replica(self, request: SpawnRequest) -> Replica:
        """Return the call of the function, or of its variant with another GPU or timeout."""
        function = self._variants.get(request.gpu, request.timeout_s)
        return Replica(function, {**request.entrypoint_args, "rank": request.rank})
