"""What pair_style metatomic refuses, and what it says.

All but the last happen in one process, as in a Python program that goes on after an error.
"""

import json
import os
import subprocess
import sys

import pytest

from metatrain_lorem.engines.lammps import build

KEYWORDS = [
    ("short-range", "devise cpu", "unknown keyword devise; this style knows device"),
    ("short-range", "device", "keyword device lacks its value"),
    ("short-range", "device tpu", "tpu"),
    ("short-range", "check_consistency maybe", "maybe"),
    ("short-range", "total_charge one", "one"),
    ("short-range", "total_charge nan", "nan"),
    ("short-range", "total_charge 1", "takes no total charge. Remove the keyword"),
    ("conditional", "", "build it into the model with python -m metatrain_lorem set-charge"),
    ("short-range", "variant pbe", "pbe"),
]
COMMANDS = [
    ("pair_coeff * * 1 6 7", "one atomic number or element for each of the 4 atom types"),
    ("pair_coeff 1 1 1 6 7 8", "must start with * *"),
    ("pair_coeff * * 1 6 7 Ox", "Ox is neither an atomic number nor the symbol of an element"),
    ("pair_coeff * * 1 6 7 F", "does not know atomic type F (LAMMPS type 4), only 1 6 7 8"),
    ("pair_coeff * * 1 6 7 9", "does not know atomic type 9 (LAMMPS type 4), only 1 6 7 8"),
    ("neigh_modify exclude type 1 1\nrun 0", "remove neigh_modify exclude"),
    ("fix mc all gcmc 1 1 1 4 7 300 -2 0.1\nrun 0", "trial move (fix gcmc"),
    (
        "compute s all stress/atom NULL\ndump d all custom 1 d.dump c_s[1]\nrun 0",
        "no stress per atom",
    ),
    (
        "compute s all centroid/stress/atom NULL\ndump d all custom 1 d.dump c_s[1]\nrun 0",
        "centroid",
    ),
    ("fix q all pair 1 metatomic charge 0", "has no output charge"),
    ("fix q all pair 1 metatomic spin 0\nrun 0", "spin"),
    ("run_style respa 2 2 inner 1 2.0 3.0 outer 2\nrun 0", "respa"),
]
OTHERS = ["missing file", "other file", "units", "hybrid"]

# Runs the input script in each folder
PROGRAM = """
import json, os, sys
from lammps import lammps

messages = []
for folder in sys.argv[1:]:
    os.chdir(folder)
    simulation = lammps(cmdargs=["-log", "none", "-screen", "none"])
    try:
        simulation.file("in.lammps")
        messages.append(None)
    except Exception as error:
        messages.append(str(error))
    simulation.close()
print(json.dumps(messages))
"""


def script(lammps, folder, case) -> str:
    """The input script of a case."""
    frame, short_range = lammps.frames.bulk(), lammps.model_file("short-range")
    if case in KEYWORDS:
        name, keywords, _ = case
        return lammps.header(folder, frame, lammps.model_file(name), keywords)
    if case in COMMANDS:
        return lammps.header(folder, frame, short_range) + case[0]
    if case == "missing file":
        return lammps.header(folder, frame, "none.pt")
    if case == "other file":
        return lammps.header(folder, frame, "structure.data")
    if case == "units":
        return lammps.header(folder, frame, short_range, units="lj")
    text = lammps.header(folder, frame, short_range)
    text = text[: text.index("pair_style")]
    text += f"pair_style hybrid metatomic {short_range} zero 3.0\n"
    return text + "pair_coeff * * metatomic 1 6 7 8\npair_coeff 1 2 zero\nrun 0"


@pytest.fixture(scope="module")
def refusals(lammps, tmp_path_factory):
    """Messages of LAMMPS by case."""
    cases = [*KEYWORDS, *COMMANDS, *OTHERS]
    folders = []
    for case in cases:
        folders.append(tmp_path_factory.mktemp("refused"))
        (folders[-1] / "in.lammps").write_text(script(lammps, folders[-1], case))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *folders],
        env=os.environ | build.environment(lammps.plugin / "metatomicplugin.so"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    messages = json.loads(result.stdout.splitlines()[-1])
    return dict(zip(cases, messages, strict=True))


@pytest.mark.parametrize("case", KEYWORDS)
def test_keywords(refusals, case):
    """Errors of the command pair_style."""
    assert case[-1] in refusals[case]


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(refusals, case):
    """Errors of commands that follow."""
    assert case[-1].lower() in refusals[case].lower()


def test_missing_file(refusals):
    assert "there is no readable file none.pt" in refusals["missing file"]


def test_other_file(refusals):
    """A file that is no exported model."""
    message = "loading structure.data as an exported model (mtt export writes one)"
    assert message in refusals["other file"]


def test_units(refusals):
    assert "runs in units metal or real, not lj" in refusals["units"]


def test_hybrid(refusals):
    """Another style may take no pairs away from the model."""
    assert "hybrid/overlay" in refusals["hybrid"]


def test_error_of_the_model(lammps, tmp_path):
    """The model's own message arrives, and the process of LAMMPS ends with an error."""
    model = lammps.model_file("long-range")
    frame = lammps.frames.bulk()
    frame.pbc = [True, False, False]
    frame.cell = [[6.0, 0, 0], [0, 20, 0], [0, 0, 20]]
    output = lammps.failure(tmp_path, lammps.header(tmp_path, frame, model) + "run 0")
    assert "periodic" in output[output.index("ERROR") :]
    assert "Traceback" not in output
