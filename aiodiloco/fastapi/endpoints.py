"""What the paths of single answers do: launch, list, look, cancel, and the probes."""

# No `from __future__ import annotations`: FastAPI reads them.
import time
from typing import Annotated, Any

import anyio
from fastapi import HTTPException, Path, Request, Response
from fastapi.responses import HTMLResponse

from aiodiloco.errors import RunConflictError, RunNotFoundError, StoreError
from aiodiloco.executors.calls import Bell
from aiodiloco.fastapi.bodies import RUN_ID, LaunchRequest, policy_of, read_body
from aiodiloco.fastapi.limits import Limits
from aiodiloco.fastapi.page import page
from aiodiloco.fastapi.service import Service
from aiodiloco.lease import read_lease
from aiodiloco.records import new_run_id
from aiodiloco.run.attaching import attach
from aiodiloco.run.launching import launch, uri_of
from aiodiloco.run.listing import RunSummary, list_runs
from aiodiloco.run.record import RunRecord, RunResult, read_record, read_result
from aiodiloco.run.run import Run
from aiodiloco.store import open_store

__all__ = ["Endpoints", "RunId"]

_CANCEL_S = 60.0  # for which a request waits; the order to end lies in the store after that
_STATUS_S = 15.0

RunId = Annotated[str, Path(pattern=RUN_ID, description="as POST /runs has returned it")]


class Endpoints:
    """The handlers, as bound methods.

    Args:
        service: Holds the runs.
        limits: What a request may ask for.
        model: What a request to launch must look like.
        lease: Of every run that is launched here; see `aiodiloco.launch`.
    """

    def __init__(self, service: Service, limits: Limits, model: type[LaunchRequest], lease: float | None) -> None:
        self._service = service
        self._limits = limits
        self._model = model
        self._lease = lease

    async def healthz(self) -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}

    async def readyz(self, response: Response) -> dict[str, str]:
        """Say whether requests can be served: the store answers, and runs of an earlier process are held again."""
        try:
            is_ready = await self._service.is_ready()
        except StoreError:
            is_ready = False
        response.status_code = 200 if is_ready else 503
        return {"status": "ready" if is_ready else "not ready"}

    async def describe(self) -> dict[str, Any]:
        """Say what can be launched here, and within which bounds."""
        limits = self._limits
        return {
            "entrypoints": sorted(self._service.entrypoints),
            "max_replicas": limits.max_replicas,
            "max_timeout_s": limits.max_timeout_s,
            "gpus": list(limits.gpus),
        }

    async def launch(self, request: Request, response: Response) -> dict[str, Any]:
        """Launch a run of an allowed entrypoint; 200 and the same run if its run_id was launched alike before."""
        asked = await read_body(request, self._model, self._limits.max_body_bytes)
        run_id = asked.run_id or new_run_id()
        is_new = asked.run_id is None or await self._find(run_id) is None
        if is_new and self._service.num_held >= self._limits.max_runs:
            raise HTTPException(429, f"{self._service.num_held} runs go on, and more are not allowed: try again later")
        run = await self._launch(asked, run_id)
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"runs/{run_id}"  # relative: proxies may have cut off a prefix
        return {"run_id": run_id, "state": "starting" if run is None else "running"}

    async def list_runs(self) -> dict[str, Any]:
        """List every run in the store."""
        return {"runs": [summary.to_dict() for summary in await list_runs(self._service.store)]}

    async def get_run(self, run_id: RunId) -> dict[str, Any]:
        """Say where a run stands, with one row per replica."""
        async with open_store(uri_of(self._service.store, run_id)) as store:
            record, result, lease = await read_record(store), await read_result(store), await read_lease(store)
        hold = self._service.hold_of(run_id)
        if record is None and hold is not None:
            return {"run_id": run_id, "state": "starting", "replicas": None, "result": None}
        is_driven = True if hold is not None and hold.is_driver else None
        summary = RunSummary(run_id, self._existing(record, run_id), result, lease, is_driven).to_dict()
        replicas = await self._replicas(record, result) if record is not None else None
        return {**summary, "replicas": replicas, "result": result and result.to_dict()}

    async def cancel_run(self, run_id: RunId, response: Response) -> dict[str, Any]:
        """End a run, whoever drives it, and answer once its end is confirmed; 202 if that takes a minute."""
        hold = self._service.hold_of(run_id)
        if hold is not None and hold.run is None:  # still being launched: that is undone
            hold.end()
            await hold.wait_for_end(time.monotonic() + _CANCEL_S)
        self._existing(await self._find(run_id), run_id)
        run = None if hold is None else hold.run
        if run is None:
            run = await attach(run_id, store=self._service.store, executor=self._service.executor)
        result = await self._result_of(run) or await self._end(run)
        response.status_code = 202 if result is None else 200
        state = "ending" if result is None else result.outcome.value
        return {"run_id": run_id, "state": state, "result": result and result.to_dict()}

    async def run_page(self, run_id: RunId) -> HTMLResponse:
        """Show the run: replicas, losses, rounds, as they come; and a button that ends it."""
        if self._service.hold_of(run_id) is None:
            self._existing(await self._find(run_id), run_id)
        return page()

    async def index_page(self) -> HTMLResponse:
        """Show all runs, and a form that starts one."""
        return page()

    async def _launch(self, asked: LaunchRequest, run_id: str) -> Run | None:
        service = self._service
        try:
            launching = launch(
                service.executor,
                service.entrypoints[asked.entrypoint],
                asked.n_replicas,
                store=service.store,
                timeout=asked.timeout,
                policy=policy_of(asked),
                args=asked.args,
                gpu=asked.gpu,
                run_id=run_id,
                lease=self._lease,
                max_gpu_seconds=asked.max_gpu_seconds,
            )
            return await service.launch(run_id, launching)
        except RunConflictError:
            raise
        except (TypeError, ValueError) as exc:  # what only the entrypoint or the backend can know
            raise HTTPException(422, str(exc)) from exc

    async def _find(self, run_id: str) -> RunRecord | None:
        async with open_store(uri_of(self._service.store, run_id)) as store:
            return await read_record(store)

    def _existing(self, record: RunRecord | None, run_id: str) -> RunRecord:
        if record is None:
            raise RunNotFoundError(f"there is no run {run_id!r} here")
        return record

    async def _replicas(self, record: RunRecord, result: RunResult | None) -> list[dict[str, Any]] | None:
        """Return one row per replica, or None where the backend cannot say in time."""
        if result is not None:
            return [row.to_dict() for row in result.rows]
        if record.backend_name != self._service.executor.backend_name:
            return None
        with anyio.move_on_after(_STATUS_S):
            run = await attach(record.run_id, store=self._service.store, executor=self._service.executor)
            return [row.to_dict() for row in (await run.status()).replicas]
        return None

    async def _result_of(self, run: Run) -> RunResult | None:
        async with open_store(run.uri) as store:
            return await read_result(store)

    async def _end(self, run: Run) -> RunResult | None:
        """End the run; return its result, or None where it has not ended within the bound, or this process ends."""
        bell = Bell()
        job = self._service.executor.calls.start(run.cancel(), on_end=bell.ring)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ring_at_shutdown, bell)
            await bell.wait_until(time.monotonic() + _CANCEL_S)
            tasks.cancel_scope.cancel()
        if not job.has_ended:
            return None
        job.value()
        return await self._result_of(run)

    async def _ring_at_shutdown(self, bell: Bell) -> None:
        await self._service.wait_for_shutdown()
        bell.ring()
