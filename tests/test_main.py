"""The command line itself; what the commands do is tested in commands/ and engines/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import metatrain_lorem
from metatrain_lorem.__main__ import COMMANDS, main

SOURCE = Path(__file__).resolve().parents[1] / "src"


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_answers_without_heavy_imports(arguments):
    code = f"""
import sys
from metatrain_lorem.__main__ import main
try:
    main({[*arguments, "--help"]})
finally:
    assert not {{"torch", "metatrain", "matplotlib"}} & set(sys.modules), "heavy"
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(" ".join(["usage: python -m metatrain_lorem", *arguments]))
    # the description, or the list of commands
    assert len(done.stdout.split("\n\n")[1]) > 60


def test_path_of_the_driver(capsys):
    main(["ipi-driver"])
    package = Path(metatrain_lorem.__file__).parent
    assert Path(capsys.readouterr().out.strip()) == package / "engines" / "ipi_driver.py"


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["report"], ["set-charge", "-x"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: python -m metatrain_lorem" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["report", "no-such-model.pt", "x.xyz"], "no model file no-such-model.pt"),
        (["convert-lorem-jax", "no-such-folder", "-o", "x.ckpt"], "not a lorem-jax checkpoint"),
        (["set-charge", "x.pt", "--total-charge", "nan", "-o", "y.ckpt"], "finite number"),
    ],
)
def test_errors_of_the_user_are_one_line(arguments, message):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert str(error.value.code).startswith("error: ")
    assert message in str(error.value.code)
