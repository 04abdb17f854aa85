"""What a request to launch may say, read so that nothing is looked at before the sender is known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model

from aiodiloco.executors.policy import FailFast, policy_from_dict

if TYPE_CHECKING:
    from collections.abc import Collection

    from fastapi import Request

    from aiodiloco.executors.policy import RunPolicy
    from aiodiloco.fastapi.limits import Limits

__all__ = ["RUN_ID", "LaunchRequest", "launch_request_model", "policy_of", "read_body"]

RUN_ID = r"^[a-z0-9][a-z0-9-]{0,62}$"

_MAX_ARGS = 256


class LaunchRequest(BaseModel):
    """What to launch; `launch_request_model` adds the service's own bounds."""

    model_config = ConfigDict(extra="forbid")

    entrypoint: str
    n_replicas: int
    timeout: float
    args: Annotated[dict[str, JsonValue], Field(max_length=_MAX_ARGS)] = {}
    run_id: Annotated[str, Field(pattern=RUN_ID)] | None = None
    policy: dict[str, JsonValue] | None = None
    gpu: str | None = None
    max_gpu_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


def launch_request_model(entrypoints: Collection[str], limits: Limits) -> type[LaunchRequest]:
    """Return the model of a request to a service with these entrypoints and limits."""
    seconds = Field(gt=0, le=limits.max_timeout_s, allow_inf_nan=False, description="of the whole run, in seconds")
    fields: dict[str, Any] = {
        "entrypoint": (Literal[tuple(sorted(entrypoints))], Field(description="one that this service allows")),
        "n_replicas": (Annotated[int, Field(ge=1, le=limits.max_replicas, strict=True)], ...),
        "timeout": (Annotated[float, seconds], ...),
        "gpu": (Literal[limits.gpus] | None if limits.gpus else None, None),
    }
    return create_model("Launch", __base__=LaunchRequest, **fields)


async def read_body(request: Request, model: type[LaunchRequest], max_bytes: int) -> LaunchRequest:
    """Return the body of a request, or answer 413, 415 or 422; never reads more than `max_bytes`.

    FastAPI would read and parse a body before it asks who sends it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another site could send text/plain, with the user's cookies
        raise HTTPException(415, "send the run as JSON, with content-type: application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise HTTPException(413, f"the body is longer than {max_bytes} bytes: pass large things by key or path")
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_input=False, include_context=False)
        raise HTTPException(422, json.loads(json.dumps(errors, default=str))) from exc


def policy_of(request: LaunchRequest) -> RunPolicy:
    """Return the policy that was asked for. Raises ValueError or TypeError if it is none."""
    if request.policy is None:
        return FailFast()
    try:
        return policy_from_dict(request.policy)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ValueError(f'policy is not valid: {exc}; for example {{"kind": "Quorum", "k": 2}}') from exc
