"""What importing costs: the driver's side never loads the heavy packages."""

import subprocess
import sys

import pytest

import aiodiloco

HEAVY = ("torch", "modal", "aiobotocore", "matplotlib", "rich", "typer")


def loaded_by(statement):
    code = f"{statement}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import aiodiloco",
        "from aiodiloco import LocalProcessExecutor, FailFast, WaitAll, ReplicaHandle, LaunchError",
        "from aiodiloco import open_store, probe, EventWriter, follow_events",
    ],
)
def test_launching_and_watching_loads_no_heavy_package(statement):
    assert loaded_by(statement) == []


def test_every_public_name_is_there():
    for name in aiodiloco.__all__:
        assert getattr(aiodiloco, name) is not None
    assert dir(aiodiloco) == sorted(aiodiloco.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'aiodiloco' has no attribute 'Executer'"):
        _ = aiodiloco.Executer


def test_a_missing_torch_is_named_with_the_command_that_installs_it():
    code = "import sys; sys.modules['torch'] = None\nimport aiodiloco\naiodiloco.DiLoCo"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "aiodiloco.DiLoCo needs torch: pip install 'aiodiloco[torch]'" in done.stderr
