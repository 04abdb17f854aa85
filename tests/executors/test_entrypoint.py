from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodiloco.errors import EntrypointError
from aiodiloco.executors.entrypoint import check_args, check_signature, name_of, resolve
from aiodiloco.executors.json_values import find_non_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def plain(*, rank: int) -> int:
    return rank


def _doubled(function: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(function)
    def twice(**arguments: Any) -> int:
        return 2 * function(**arguments)

    return twice


def _hidden(function: Callable[..., int]) -> Callable[..., int]:
    def other(**arguments: Any) -> int:
        return function(**arguments)

    return other


@_doubled
def decorated(*, rank: int) -> int:
    return rank


@_hidden
def badly_decorated(*, rank: int) -> int:
    return rank


class Namespace:
    @staticmethod
    def static(*, rank: int) -> int:
        return rank

    def method(self, *, rank: int) -> int:
        return rank

    def __call__(self, *, rank: int) -> int:
        return rank


@pytest.mark.parametrize("function", [plain, decorated, Namespace.static])
def test_a_name_leads_back_to_its_function(function: Callable[..., int]) -> None:
    assert resolve(name_of(function)) is function


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda rank: rank, "is a lambda"),
        (badly_decorated, "defined inside another function"),
        (Namespace().method, "bound to an object"),
        (Namespace(), "is a Namespace without a name of its own"),
        (functools.partial(plain), "is a partial without a name of its own"),
        (7, "is a int, not a function"),
        (None, "is a NoneType, not a function"),
    ],
)
def test_a_function_that_has_no_name_elsewhere_is_refused(function: Callable[..., object], says: str) -> None:
    with pytest.raises(EntrypointError, match=f"{says}.*; give a function defined with `def`"):
        name_of(function)


def test_a_function_that_was_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plain
    monkeypatch.setattr(sys.modules[__name__], "plain", decorated)
    with pytest.raises(EntrypointError, match=r"is not what .*:plain names"):
        name_of(before)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("json", 'is not of the form "module:function"'),
        (":dumps", 'is not of the form "module:function"'),
        ("json:", 'is not of the form "module:function"'),
        ("json:no_such", "module 'json' has no 'no_such'"),
        ("json:decoder.no_such", "module 'json' has no 'decoder.no_such'"),
        ("json:__name__", "is a str, not a function"),
        ("no_such_module_of_anyone:f", "importing 'no_such_module_of_anyone' failed with ModuleNotFoundError"),
        ("..json:dumps", "importing '..json' failed with"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name: str, says: str) -> None:
    with pytest.raises(EntrypointError) as caught:
        resolve(name)
    assert says in str(caught.value)


def test_a_module_that_fails_to_import_is_told_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module_of_a_test.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EntrypointError, match="failed with ZeroDivisionError: division by zero"):
        resolve("broken_module_of_a_test:f")


def test_arguments_arrive_as_json_makes_them() -> None:
    assert check_args({"a": (1, 2), "b": {"c": None}}) == {"a": [1, 2], "b": {"c": None}}


def test_a_signature_is_checked_with_the_rank_that_will_be_added() -> None:
    check_signature("m:plain", plain, {})
    check_signature("m:min", min, {"key": 1})  # a builtin without a signature: nothing to check
    with pytest.raises(EntrypointError, match=r"m:plain.* cannot be called with rank=… and \['x'\]"):
        check_signature("m:plain", plain, {"x": 1})
    with pytest.raises(EntrypointError, match="cannot be called with rank"):
        check_signature("m:f", lambda: None, {})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(_JSON)
def test_json_is_json(value: object) -> None:
    assert find_non_json(value, "value") is None


@pytest.mark.parametrize("bad", [b"x", {1}, object(), 1j, float("inf"), {1: 2}, {None: 1}])
@settings(max_examples=20)
@given(value=_JSON)
def test_what_is_not_json_is_found_wherever_it_is(bad: object, value: object) -> None:
    problem = find_non_json({"a": [value, {"b": bad}]}, "value")
    assert problem is not None
    assert problem.startswith("value['a'][1]['b'] ")


def test_what_contains_itself_is_not_json() -> None:
    loop: list[object] = []
    loop.append(loop)
    problem = find_non_json(loop, "value")
    assert problem is not None
    assert problem.endswith("is nested more than 100 deep")
