"""Runs torchft's tests on `StoreManager`, against what torchft's own manager gave in the same tests.

    python -m aiodiloco.testing.torchft

Runs `torchft.local_sgd_test` and `torchft.diloco_regression_test` as they are installed. The regression tests compare
with recorded parameters, which torchft's wheel lacks: its own manager, lighthouse and process groups record them
first. Where no replica fails, the parameters must be equal to the bit, not only within torchft's tolerance. What
differs from torchft's runs: where a test makes a `Manager`, it gets a `StoreManager`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import sys
import tempfile
import unittest
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from aiodiloco.testing.torchft.managers import Managers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

_LOCAL_SGD, _REGRESSION, _TRAINER = (
    "torchft.local_sgd_test",
    "torchft.diloco_regression_test",
    "torchft._test.diloco_trainer",
)


def main() -> int:
    """Run all, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m aiodiloco.testing.torchft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    os.environ.setdefault("RUST_LOG", "error")  # of torchft's lighthouse
    try:
        local_sgd, regression, trainer = (importlib.import_module(n) for n in (_LOCAL_SGD, _REGRESSION, _TRAINER))
    except ModuleNotFoundError as exc:
        print(f"{exc.name} is not installed: pip install torchft parameterized", file=sys.stderr)
        return 2
    logging.getLogger().setLevel(logging.CRITICAL)  # the tests provoke errors
    with tempfile.TemporaryDirectory(prefix="aiodiloco-torchft-") as name:
        directory = Path(name)
        with _fixtures(regression, directory):
            print("recording what torchft's own manager does", flush=True)
            with patch.dict(os.environ, WRITE_FIXTURE="true"):
                recorded = _run(regression)
            managers = Managers(directory)
            with (
                patch.object(local_sgd, "create_manager", managers.counted),
                patch.object(local_sgd, "create_autospec", managers.counted),
                patch.object(trainer, "Manager", managers.manager),
                patch.object(regression, "handle_fixture", _exact(regression.handle_fixture)),
                contextlib.closing(managers),
            ):
                print("running torchft's tests on StoreManager", flush=True)
                passed = _run(local_sgd) and _run(regression)
    return 0 if recorded and passed else 1


@contextlib.contextmanager
def _fixtures(regression: ModuleType, directory: Path) -> Iterator[None]:
    """Have the fixtures in `directory`, which the tests look for beside their package."""
    (directory / "test_fixtures").mkdir()
    with patch.object(regression, "__file__", str(directory / "torchft" / "diloco_regression_test.py")):
        yield


def _exact(handle_fixture: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """Return torchft's function that reads what was recorded, which also compares it to the bit."""

    def handle(filename: str, results: Any) -> Any:
        recorded = handle_fixture(filename, results)
        if "failure" not in filename and json.loads(json.dumps(results)) != recorded:
            raise AssertionError(f"{filename}: parameters differ from those of torchft's own manager")
        return recorded

    return handle


def _run(module: ModuleType) -> bool:
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    return unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite).wasSuccessful()


if __name__ == "__main__":
    raise SystemExit(main())
