"""Name, find and check the function that replicas run."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from aiodiloco.errors import EntrypointError, LeaseExpiredError
from aiodiloco.executors.json_values import find_non_json

if TYPE_CHECKING:
    from aiodiloco.records import JSON

__all__ = ["IMPORTING_MAIN", "check_args", "check_signature", "exit_code_of", "name_of", "resolve", "select_taken"]

IMPORTING_MAIN = "AIODILOCO_IMPORTING_MAIN"
"""Set in a replica's environment while it imports its driver's script again."""

_MAX_ARGS_BYTES = 8 << 20
_REMEDY = (
    'give a function defined with `def` at the top level of an importable module, or its name as "module:function"'
)


def name_of(function: Callable[..., object]) -> str:
    """Return the `"module:function"` name under which another process can import `function`.

    Raises:
        EntrypointError: it has no such name: a lambda, a nested function, a method, a partial, a notebook cell.
    """
    if problem := _why_unnamed(function):
        raise EntrypointError(f"entrypoint {function!r} {problem}; {_REMEDY}")
    return f"{function.__module__}:{function.__qualname__}"


def _why_unnamed(function: Callable[..., object]) -> str | None:
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function):
        return f"is a {type(function).__qualname__}, not a function"
    if inspect.ismethod(function):
        return "is a method bound to an object, which cannot be sent to another process"
    if not isinstance(module, str) or not isinstance(qualname, str):
        return f"is a {type(function).__qualname__} without a name of its own, so replicas cannot import it"
    return _why_not_importable(function, module, qualname)


def _why_not_importable(function: Callable[..., object], module: str, qualname: str) -> str | None:
    if "<lambda>" in qualname:
        return "is a lambda, which replicas cannot import"
    if "<locals>" in qualname:
        return "is defined inside another function, so replicas cannot import it"
    if module == "__main__" and not _main_can_be_imported():
        return "is defined in a notebook or an interactive session, so replicas cannot import it"
    if _find(sys.modules.get(module), qualname) is not function:
        return f"is not what {module}:{qualname} names (wrapped by a decorator without functools.wraps, or replaced)"
    return None


def _main_can_be_imported() -> bool:
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None) or "<stdin>"
    return getattr(main, "__spec__", None) is not None or not file.startswith("<")


def _find(module: object, qualname: str) -> object:
    found = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def resolve(name: str) -> Callable[..., object]:
    """Import and return the function called `name`, i.e. `"module:function"`. Blocks while it imports.

    Raises:
        EntrypointError: no such module or function, or the module failed to import.
    """
    function = find(name)
    if not callable(function):
        raise EntrypointError(f"entrypoint {name!r} is a {type(function).__qualname__}, not a function; {_REMEDY}")
    return cast("Callable[..., object]", function)


def find(name: str) -> object:
    """Import and return whatever is called `name`; see `resolve`."""
    module_name, colon, qualname = name.partition(":")
    if not colon or not module_name or not qualname:
        raise EntrypointError(f'entrypoint {name!r} is not of the form "module:function"')
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:
        raise EntrypointError(
            f"entrypoint {name!r}: importing {module_name!r} failed with {type(exc).__qualname__}: {exc}; "
            "check its name, and that it is installed or its directory is in sys.path"
        ) from exc
    function = _find(module, qualname)
    if function is None:
        raise EntrypointError(f"entrypoint {name!r}: module {module_name!r} has no {qualname!r}")
    return function


def check_args(args: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """Return `args` as its replicas will see them, or raise EntrypointError naming what is not JSON or too large."""
    if not isinstance(args, Mapping):
        raise EntrypointError(f"entrypoint_args must be a mapping of keyword arguments, not {args!r}")
    if "rank" in args:
        raise EntrypointError("entrypoint_args may not hold 'rank': every replica gets its own as the keyword `rank`")
    if problem := find_non_json(dict(args), "entrypoint_args"):
        raise EntrypointError(
            f"{problem}; arguments travel as JSON: pass numbers, strings, lists and dicts, and larger things by key "
            "or path"
        )
    text = json.dumps(dict(args))
    if len(text) > _MAX_ARGS_BYTES:
        raise EntrypointError(
            f"entrypoint_args are {len(text)} bytes of JSON, more than {_MAX_ARGS_BYTES}; put large data in the store "
            "and pass its key"
        )
    return cast("Mapping[str, JSON]", json.loads(text))


def check_signature(name: str, function: Callable[..., object], args: Mapping[str, JSON]) -> None:
    """Raise EntrypointError unless `function(rank=…, **args)` fits the function's parameters."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without one
        return
    try:
        signature.bind(rank=0, **args)
    except TypeError as exc:
        raise EntrypointError(
            f"entrypoint {name}{signature} cannot be called with rank=… and {sorted(args)}: {exc}; change "
            "entrypoint_args or the function's parameters"
        ) from exc


def select_taken(function: Callable[..., object], offered: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """Return those of the `offered` keyword arguments that the function has parameters for; all, if nobody knows."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without one
        return offered
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return offered
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in offered.items() if name in names}


def exit_code_of(exc: BaseException) -> int:
    """Return the exit code of a replica whose entrypoint raised `exc`."""
    if isinstance(exc, BaseExceptionGroup):
        codes = {exit_code_of(inner) for inner in exc.exceptions}
        return LeaseExpiredError.exit_code if LeaseExpiredError.exit_code in codes else 1
    if isinstance(exc, LeaseExpiredError):
        return exc.exit_code
    return exc.code & 0xFF if isinstance(exc, SystemExit) and isinstance(exc.code, int) else 1
