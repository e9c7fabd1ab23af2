"""What pair_style metatomic refuses, and what it says."""

import pytest


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("short-range", "devise cpu", "unknown keyword devise; this style knows device"),
        ("short-range", "device", "keyword device lacks its value"),
        ("short-range", "device tpu", "tpu"),
        ("short-range", "check_consistency maybe", "maybe"),
        ("short-range", "total_charge one", "one"),
        ("short-range", "total_charge nan", "nan"),
        ("short-range", "total_charge 1", "takes no total charge. Remove the keyword"),
        ("conditional", "", "build it into the model with python -m metatrain_lorem set-charge"),
        ("short-range", "variant pbe", "pbe"),
    ],
)
def test_keywords(lammps, tmp_path, name, keywords, message):
    """Errors of the command pair_style."""
    script = lammps.header(tmp_path, lammps.frames.bulk(), lammps.model_file(name), keywords)
    output = lammps.failure(tmp_path, script)
    assert message in output[output.index("ERROR") :]


def test_missing_file(lammps, tmp_path):
    script = lammps.header(tmp_path, lammps.frames.bulk(), tmp_path / "none.pt")
    assert f"there is no readable file {tmp_path / 'none.pt'}" in lammps.failure(tmp_path, script)


def test_other_file(lammps, tmp_path):
    """A file that is no exported model."""
    script = lammps.header(tmp_path, lammps.frames.bulk(), tmp_path / "structure.data")
    output = lammps.failure(tmp_path, script)
    message = f"loading {tmp_path / 'structure.data'} as an exported model (mtt export writes one)"
    assert message in output


def test_units(lammps, tmp_path):
    model = lammps.model_file("short-range")
    script = lammps.header(tmp_path, lammps.frames.bulk(), model, units="lj")
    assert "runs in units metal or real, not lj" in lammps.failure(tmp_path, script)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pair_coeff * * 1 6 7", "one atomic number for each of the 4 atom types"),
        ("pair_coeff 1 1 1 6 7 8", "must start with * *"),
        ("pair_coeff * * 1 6 7 O", "O is no atomic number (LAMMPS type 4)"),
        ("pair_coeff * * 1 6 7 9", "does not know atomic type 9 (LAMMPS type 4), only 1 6 7 8"),
        ("neigh_modify exclude type 1 1\nrun 0", "remove neigh_modify exclude"),
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
    ],
)
def test_commands(lammps, tmp_path, command, message):
    """Errors of commands that follow."""
    model = lammps.model_file("short-range")
    script = lammps.header(tmp_path, lammps.frames.bulk(), model) + command
    output = lammps.failure(tmp_path, script)
    assert message.lower() in output[output.index("ERROR") :].lower()


def test_hybrid(lammps, tmp_path):
    """Another style may take no pairs away from the model."""
    model = lammps.model_file("short-range")
    script = lammps.header(tmp_path, lammps.frames.bulk(), model)
    script = script[: script.index("pair_style")]
    script += f"""
pair_style hybrid metatomic {model} zero 3.0
pair_coeff * * metatomic 1 6 7 8
pair_coeff 1 2 zero
run 0
"""
    assert "hybrid/overlay" in lammps.failure(tmp_path, script)


def test_error_of_the_model(lammps, tmp_path):
    """The model's own message arrives."""
    model = lammps.model_file("long-range")
    frame = lammps.frames.bulk()
    frame.pbc = [True, False, False]
    frame.cell = [[6.0, 0, 0], [0, 20, 0], [0, 0, 20]]
    output = lammps.failure(tmp_path, lammps.header(tmp_path, frame, model) + "run 0")
    assert "periodic" in output[output.index("ERROR") :]
    assert "Traceback" not in output
