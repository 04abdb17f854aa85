from __future__ import annotations

import subprocess
import sys


def test_executors_are_imported_without_torch_and_without_the_supervisors_side() -> None:
    code = (
        "import sys, aiodiloco.executors\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'modal', 'aiobotocore', 'pytest', 'psutil')])\n"
        "print([m for m in sys.modules if m.endswith(('local.replica', 'local.supervisor', 'local.linux'))])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.splitlines() == ["[]", "[]"]
