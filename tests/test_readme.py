"""README's commands run as they are shown. Those that install run in ``.ci/run``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the repository")


@pytest.fixture
def folder(tmp_path):
    """A place like the repository's root, with fewer structures and epochs."""
    (tmp_path / "options" / "data").mkdir(parents=True)
    for path in (ROOT / "options").glob("*.yaml"):
        text, found = re.subn(r"num_epochs: \d+", "num_epochs: 1", path.read_text())
        assert found == 1, path
        (tmp_path / "options" / path.name).write_text(text)
    for path in (ROOT / "options" / "data").glob("nacl-clusters-*.xyz"):
        ase.io.write(tmp_path / "options" / "data" / path.name, ase.io.read(path, ":20"))
    return tmp_path


def test_commands(folder):
    blocks = re.findall(r"```(bash|python)\n(.*?)```", README.read_text(), re.DOTALL)
    blocks = [block for block in blocks if not block[1].startswith("pip install ")]
    assert [language for language, _ in blocks] == ["bash", "python"]
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for language, text in blocks:
        command = ["bash", "-ec", text] if language == "bash" else [sys.executable, "-c", text]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{text}\n{run.stdout}{run.stderr}"
        print(run.stdout)
    # the last block's energy and forces, a triple per atom
    assert re.match(r"-?\d+\.\d+ \[\[", run.stdout), run.stdout


def test_links():
    """Every file that README names exists."""
    text = README.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text) + re.findall(r"`(options/\S+)`", text)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
