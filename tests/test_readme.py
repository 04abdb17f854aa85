"""What the README shows runs as it is written there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_twelve_lines_of_python_train_to_the_end(tmp_path):
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", README, flags=re.DOTALL)
    assert [name for name, _ in blocks] == ["train.py", "main.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code.replace("steps(1000)", "steps(60)"))
    command = [sys.executable, "main.py"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    losses = [result["loss"] for result in ast.literal_eval(done.stdout)]
    assert len(losses) == 4
    assert all(loss > 0 for loss in losses)


def test_every_file_the_readme_points_to_is_there():
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"`((?:tests|docs|examples)/[^`]+)`", README)
    assert [link for link in links if not (root / link).exists()] == []
