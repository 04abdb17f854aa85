"""`ModalExecutor`: any importable function as replicas on Modal."""

from __future__ import annotations

import math
import secrets as randomness
from typing import TYPE_CHECKING

from aiodiloco.executors.core import Executor
from aiodiloco.executors.launch import check_timeout
from aiodiloco.executors.modal.app import AnyFunctionApp
from aiodiloco.executors.modal.backend import ModalBackend
from aiodiloco.executors.modal.functions import check_client, check_grace, dashboard_url
from aiodiloco.executors.modal.target import check_at_most_a_day

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import modal

    from aiodiloco.records import ReplicaHandle

__all__ = ["ModalExecutor"]

_DEFAULT_TIMEOUT_S = 3600.0


class ModalExecutor(Executor):
    """Runs any function of an importable module as replicas on Modal; needs no Modal code of your own.

    It makes an app with one function, which imports the entrypoint and runs it, sync or async; deploys it before the
    first launch, so that replicas and handles survive this process; and stops it, and every replica in it, when the
    executor is closed. An app that is left behind because this process was killed costs nothing once its replicas have
    ended; `modal app stop` removes it.

    Shipped to the containers: aiodiloco, the entrypoint's top-level package (or the driver's own script) and
    `modules`, unless they are installed in site-packages; the image must have the rest.

    What `ModalSpawnExecutor` says about preemption, polling, run ids and `grace` holds here too.

    Args:
        image: By default Debian with this Python version, torch, and what aiodiloco needs.
        gpu: In Modal's words, e.g. `"H100"`; `launch_replicas(gpu=…)` overrides it.
        volumes: Mount point -> `modal.Volume` or `modal.CloudBucketMount`.
        secrets: Their values become environment variables of the replicas, e.g. the credentials of a bucket.
        timeout: Seconds a replica may run, up to 24 hours; `launch_replicas(timeout=…)` overrides it.
        app_name: Name of the app; by default a fresh one. One name belongs to one executor at a time.
        modules: Further top-level modules and packages of yours that the entrypoint imports.
        keep: Leave the app deployed and the replicas running when the executor is closed.
        client: The Modal client to ask with; by default the one of the environment's token.
        grace: Seconds between asking a cancelled replica to end and killing its container.
    """

    def __init__(
        self,
        *,
        image: modal.Image | None = None,
        gpu: str | None = None,
        volumes: Mapping[str, modal.Volume | modal.CloudBucketMount] | None = None,
        secrets: Sequence[modal.Secret] = (),
        timeout: float = _DEFAULT_TIMEOUT_S,
        app_name: str | None = None,
        modules: Sequence[str] = (),
        keep: bool = False,
        client: modal.Client | None = None,
        grace: float = 3.0,
    ) -> None:
        if isinstance(modules, str):
            raise ValueError(f"modules must be a list of module names, not {modules!r}")  # noqa: TRY004 - one error for bad arguments
        check_client(client)
        timeout_s = check_at_most_a_day(check_timeout(timeout) or _DEFAULT_TIMEOUT_S)
        self._app = AnyFunctionApp(
            app_name or f"aiodiloco-{randomness.token_hex(4)}",
            {"gpu": gpu, "volumes": dict(volumes or {}), "secrets": list(secrets), "timeout": math.ceil(timeout_s)},
            image=image,
            modules=modules,
            client=client,
        )
        self._keep = keep
        self._modal = ModalBackend(self._app, client=client, grace_s=check_grace(grace))
        super().__init__(self._modal)

    @property
    def app_name(self) -> str:
        """The name of the app, for `modal app logs` and `modal app stop`."""
        return self._app.name

    def dashboard_url(self, handle: ReplicaHandle) -> str:
        """Return the address of the replica's call on Modal's dashboard."""
        self._check_handle(handle)
        return dashboard_url(handle)

    async def close(self) -> None:
        """Stop the app and every replica in it, unless `keep`; wait for the cancellations under way.

        Every replica whose cancellation was asked for in this event loop has been told to end, and if it did not
        within `grace`, Modal has been told to kill its container. Idempotent; takes at most 10 s, and `grace` + 13 s
        while cancellations are under way; not interrupted by anyio scopes. A later launch deploys the app again.

        Raises:
            ExecutorError: Modal did not confirm that it has stopped the app; the message says how to stop it.
        """
        try:
            if not self._keep:
                await self._app.stop()
        finally:
            try:
                await super().close()
            finally:
                await self._modal.close()
