"""Preparation of data, read back with metatrain's own reader."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from metatrain.utils.data import read_extra_data, read_systems, read_targets
from metatrain.utils.omegaconf import expand_dataset_config
from omegaconf import OmegaConf

from metatrain_lorem.__main__ import main
from metatrain_lorem.commands.prepare import prepare, prepare_file

MASS = {"Na": 22.98976928, "Cl": 35.45}  # IUPAC, as in ASE
POSITIONS = np.array([[0.5, 0.0, 0.0], [2.5, 1.0, 0.0]])


def pair(info=None, arrays=None, **results):
    """NaCl with data as ASE reads them: what it takes for itself is in the calculator."""
    atoms = Atoms("NaCl", POSITIONS)
    atoms.info.update(info or {})
    atoms.arrays.update({name: np.array(values) for name, values in (arrays or {}).items()})
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_metatrain_reads_it(tmp_path):
    """Written with the names that ASE hides, as a user's script would."""
    (tmp_path / "in.xyz").write_text(
        "2\n"
        "Properties=species:S:1:pos:R:3:forces:R:3:charges:R:1:tag:I:1 energy=-1.5 "
        'dipole="-4.8 0.1 0.2" total_charge=1 origin=dft pbc="F F F"\n'
        "Na 0.5 0.0 0.0  0.1 0.2 0.3  0.9 7\n"
        "Cl 2.5 1.0 0.0 -0.1 -0.2 -0.3 0.1 8\n"
        "2\n"
        'Lattice="6 0 0 0 6 0 0 0 6" Properties=species:S:1:pos:R:3:forces:R:3:initial_charges:R:1'
        ' energy=-2.5 stress="1 6 5 6 2 4 5 4 3" dipole="1 2 3" pbc="T T T"\n'
        "Na 0.0 0.0 0.0  0.4 0.5 0.6  0.8\n"
        "Cl 3.0 0.0 0.0 -0.4 -0.5 -0.6 -0.8\n"
    )
    path = tmp_path / "out.xyz"
    prepare_file(tmp_path / "in.xyz", path)

    options = OmegaConf.create(
        {
            "systems": {"read_from": str(path), "length_unit": "angstrom"},
            "targets": {
                "energy": {"key": "energy", "unit": "eV", "forces": True},
                "mtt::atomic_charge": {"key": "atomic_charge", "sample_kind": "atom"},
                "mtt::dipole_moment": {
                    "key": "dipole_moment",
                    "type": {"cartesian": {"rank": 1}},
                },
            },
            "extra_data": {"charge": {"key": "charge", "quantity": "charge", "unit": "e"}},
        }
    )
    options = expand_dataset_config(options)[0]
    systems = read_systems(str(path))
    targets, infos = read_targets(options["targets"])
    extra, _ = read_extra_data(options["extra_data"])

    np.testing.assert_array_equal(systems[0].positions, POSITIONS)
    assert not systems[0].pbc.any() and systems[1].pbc.all()
    np.testing.assert_array_equal(systems[1].cell, 6 * np.eye(3))
    energies = [target.block().values.item() for target in targets["energy"]]
    assert energies == [-1.5, -2.5]
    assert "positions" in infos["energy"].gradients
    forces = -targets["energy"][1].block().gradient("positions").values.squeeze(-1)
    np.testing.assert_array_equal(forces, [[0.4, 0.5, 0.6], [-0.4, -0.5, -0.6]])
    charges = [target.block().values.flatten().tolist() for target in targets["mtt::atomic_charge"]]
    assert charges == [[0.9, 0.1], [0.8, -0.8]]
    dipoles = [target.block().values.flatten() for target in targets["mtt::dipole_moment"]]
    np.testing.assert_array_equal(dipoles, [[-4.8, 0.1, 0.2], [np.nan] * 3])
    total_charges = [data.block().values.item() for data in extra["charge"]]
    np.testing.assert_array_equal(total_charges, [1.0, np.nan])

    molecule, crystal = read(path, ":")
    assert molecule.info["origin"] == "dft" and "total_charge" not in molecule.info
    assert molecule.arrays["tag"].tolist() == [7, 8]
    assert "initial_charges" not in crystal.arrays
    # ASE's order: xx yy zz yz xz xy
    np.testing.assert_array_equal(crystal.get_stress(), [1, 2, 3, 4, 5, 6])
    # a file with the right names stays as it is
    prepare_file(path, tmp_path / "again.xyz")
    assert (tmp_path / "again.xyz").read_text() == path.read_text()


def test_column_charge(tmp_path):
    """ASE reads and writes a column `charge` for its `charges`."""
    path = tmp_path / "in.xyz"
    path.write_text("1\nProperties=species:S:1:pos:R:3:charge:R:1 charge=0.5\nNa 0 0 0 0.5\n")
    prepare_file(path, tmp_path / "out.xyz")
    atoms = read(tmp_path / "out.xyz")
    assert atoms.arrays["atomic_charge"].tolist() == [0.5]
    assert atoms.info["charge"] == 0.5


def test_two_names_of_one_value():
    atoms = pair(arrays={"atomic_charge": [0.5, -0.5]}, charges=[0.5, -0.5])
    prepare([atoms])
    assert atoms.arrays["atomic_charge"].tolist() == [0.5, -0.5]
    assert "charges" not in atoms.calc.results


@pytest.mark.parametrize(
    "atoms, message",
    [
        (
            pair(arrays={"atomic_charge": [0.5, -0.5]}, charges=[0.5, -0.4]),
            "'atomic_charge' and 'charges' differ",
        ),
        (
            pair(arrays={"initial_charges": [1, -1]}, charges=[0.5, -0.5]),
            "'charges' and 'initial_charges' differ",
        ),
        (
            pair({"dipole_moment": [1.0, 0, 0]}, dipole=[1.0, 0, 0.1]),
            "'dipole_moment' and 'dipole' differ",
        ),
        (pair({"charge": 1, "total_charge": 0}), "'charge' and 'total_charge' differ"),
        (pair(dipole=[1.0, 2.0]), r"'dipole' must be 3 numbers, it is array\(\[1., 2.\]\)"),
        (pair({"charge": [1, 2]}), "'charge' must be one number"),
        (pair({"charge": True}), "'charge' must be one number"),
        (pair({"charge": np.inf}), "'charge' is infinite"),
        (pair(charges=[np.inf, 0.0]), "'charges' is infinite"),
    ],
)
def test_contradictions_name_the_structure(atoms, message):
    with pytest.raises(ValueError, match=rf"structure 1 \(counted from 0\): {message}"):
        prepare([pair(), atoms])


def test_zero_initial_charges_are_no_labels():
    """ASE writes them when nobody has set charges."""
    default, labelled = pair(arrays={"initial_charges": [0.0, 0.0]}), pair(charges=[0.9, -0.9])
    summary = prepare([default, labelled])
    assert (summary.charges, summary.zero_initial_charges) == (1, 1)
    assert np.isnan(default.arrays["atomic_charge"]).all()
    assert default.arrays["initial_charges"].tolist() == [0.0, 0.0]


def test_what_no_structure_has_is_not_invented():
    atoms = pair(energy=1.0)
    prepare([atoms])
    assert set(atoms.arrays) == {"numbers", "positions"} and atoms.info == {}


def test_sums_are_compared_with_the_total_charge(tmp_path, capsys):
    structures = [
        pair({"charge": 0}, charges=[0.9, -0.895]),  # off by 0.005: as rounding makes it
        pair({"charge": 0}, charges=[0.9, -0.88]),
        pair({"charge": 1}, charges=[0.9, -0.9]),
        pair({"charge": 0.5}, charges=[0.75, -0.25]),  # a fractional charge is allowed
        pair({"charge": 1}, charges=[0.9, np.nan]),  # nothing to compare
        pair(charges=[0.9, -0.9]),
    ]
    write(tmp_path / "in.xyz", structures)
    main(["prepare", str(tmp_path / "in.xyz"), str(tmp_path / "out.xyz")])
    printed = capsys.readouterr().out
    rows = dict(line.rsplit(maxsplit=1) for line in printed.splitlines()[:4])
    assert rows["structures"] == "6"
    assert rows["with atomic charges (atomic_charge)"] == "6"
    assert rows["with dipole moment (dipole_moment)"] == "0"
    assert rows["with total charge (charge)"] == "5"
    assert "more than 0.01 e in 2 of 4 structures" in printed
    assert "worst: structure 2 (counted from 0), sum 0 e, total charge 1 e" in printed
    assert "1 structures have no total charge" in printed
    assert "--total-charge-from-sum" in printed


def test_total_charge_from_sum():
    known, rounded = pair({"charge": 0.3}, charges=[0.9, -0.6]), pair(charges=[-0.45, -0.52])
    unlabelled = pair()
    summary = prepare([known, rounded, unlabelled], total_charge_from_sum=True)
    assert (known.info["charge"], rounded.info["charge"]) == (0.3, -1.0)
    assert np.isnan(unlabelled.info["charge"])
    assert (summary.rounded, summary.total_charges) == (1, 2)
    with pytest.raises(ValueError, match="structure 0 .*sum to 0.12 e, further than 0.1 e"):
        prepare([pair(charges=[0.62, -0.5])], total_charge_from_sum=True)


@pytest.mark.parametrize("total_charge", [0, 1])
def test_dipole_origin(total_charge, tmp_path):
    """Dipole moments of point charges about both origins, in a file with masses of its own."""
    charges = np.array([0.9, total_charge - 0.9])
    weights = np.array([MASS["Na"], MASS["Cl"]]) / (MASS["Na"] + MASS["Cl"])
    about_origin = charges @ POSITIONS
    about_centre_of_mass = charges @ (POSITIONS - weights @ POSITIONS)
    atoms = pair({"charge": total_charge}, dipole=about_origin)
    atoms.set_masses([2.0, 1.0])
    write(tmp_path / "in.xyz", atoms)
    for option, expected in (
        ([], about_origin),
        (["--dipole-origin", "center-of-mass"], about_origin),
        (["--dipole-origin", "coordinates"], about_centre_of_mass),
    ):
        main(["prepare", str(tmp_path / "in.xyz"), str(tmp_path / "out.xyz"), *option])
        dipole = read(tmp_path / "out.xyz").info["dipole_moment"]
        np.testing.assert_allclose(dipole, expected, atol=1e-12)


def test_dipole_cannot_be_moved_without_total_charge():
    with pytest.raises(ValueError, match="structure 0 .*without its total charge"):
        prepare([pair(dipole=[1.0, 0, 0])], dipoles_about_origin=True)


def test_dipoles_of_periodic_structures_are_left_out():
    periodic, named = pair(dipole=[1.0, 0, 0]), pair({"dipole_moment": [1.0, 0, 0]})
    periodic.set_cell([9, 9, 9])
    named.set_cell([9, 9, 9])
    periodic.pbc, named.pbc = True, (True, True, False)
    summary = prepare([periodic, named])
    assert (summary.dipoles, summary.periodic_dipoles) == (0, 2)
    assert "dipole_moment" not in named.info and "dipole" not in periodic.calc.results
    assert "periodic: dipole moment left out             2" in str(summary)


def test_input_stays(tmp_path):
    path = tmp_path / "in.xyz"
    write(path, pair(charges=[0.9, -0.9]))
    content = path.read_text()
    (tmp_path / "link.xyz").symlink_to(path)
    for output in (path, tmp_path / "link.xyz"):
        with pytest.raises(SystemExit, match="is the input: choose another name"):
            main(["prepare", str(path), str(output)])
    assert path.read_text() == content


def test_interrupted_writing_leaves_the_old_output(tmp_path, monkeypatch):
    source, output = tmp_path / "in.xyz", tmp_path / "out.xyz"
    write(source, pair(charges=[0.9, -0.9]))
    output.write_text("old")

    def full_disk(path, *arguments, **keywords):
        path.write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr("ase.io.write", full_disk)
    with pytest.raises(SystemExit, match="No space left"):
        main(["prepare", str(source), str(output)])
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.xyz", "out.xyz"]


@pytest.mark.parametrize(
    "source, output, message",
    [
        ("none.xyz", "out.xyz", "ASE cannot read .*none.xyz"),
        ("in.xyz", "out.traj", "let the name end in .xyz"),
    ],
)
def test_wrong_files(source, output, message, tmp_path):
    write(tmp_path / "in.xyz", pair())
    with pytest.raises(SystemExit, match=message):
        main(["prepare", str(tmp_path / source), str(tmp_path / output)])


MOLECULE = Atoms("OHH", [[0.1, 0.2, 0.0], [0.9, 0.7, 0.1], [-0.5, 0.8, 0.4]])


def with_born_charges(name, transposed=False, excess=0.0, **info):
    """Point charges, of which two depend on the distance of the hydrogen atoms: a molecule whose
    Born charges are derivatives of its dipole moment."""
    atoms = MOLECULE.copy()

    def dipole(positions):
        distance = np.linalg.norm(positions[1] - positions[2])
        q = np.array([-0.3 * distance - 0.4, 0.3 * distance, 0.4])
        return q @ positions

    born = np.zeros((3, 3, 3))
    h = 1e-5
    for i in range(3):
        for beta in range(3):
            for sign in (-1, 1):
                positions = atoms.positions.copy()
                positions[i, beta] += sign * h
                born[i, beta] += sign * dipole(positions) / (2 * h)
    assert abs(born - born.transpose(0, 2, 1)).max() > 0.1
    atoms.info.update(charge=0, dipole_moment=dipole(atoms.positions), **info)
    born[0, 1, 1] += excess
    labels = (born.transpose(0, 2, 1) if transposed else born).reshape(3, 9)
    if name == "born_effective_charges":  # ASE's own
        atoms.calc = SinglePointCalculator(atoms, **{name: labels.reshape(3, 3, 3)})
    else:
        atoms.arrays[name] = labels
    return atoms, born.reshape(3, 9)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["bec", "born_charges", "apt", "born_effective_charges"])
def test_born_charges(name, transposed):
    atoms, born = with_born_charges(name, transposed)
    other = MOLECULE.copy()
    summary = prepare([atoms, other], polarization_first=transposed)
    np.testing.assert_allclose(atoms.arrays["born_effective_charge"], born, atol=1e-12)
    assert name not in atoms.arrays
    assert np.isnan(other.arrays["born_effective_charge"]).all()
    assert summary.born_charges == 1
    assert "more than 0.1 e, which training refuses, in 0 of 1 structures" in str(summary)
    assert "of 1 of 1 neutral molecules agree with this order" in str(summary)


def test_born_charges_in_the_other_order(tmp_path, capsys):
    """Said, where dipole moments know it; sums that are off, too."""
    frames = [with_born_charges("bec", True)[0], with_born_charges("bec", True, 0.2)[0]]
    write(tmp_path / "in.xyz", frames, format="extxyz")
    command = ["prepare", str(tmp_path / "in.xyz"), str(tmp_path / "out.xyz")]
    main(command)
    told = capsys.readouterr().out
    assert "in 1 of 2 structures; worst: structure 1 (counted from 0), 0.2 e" in told
    assert "of 2 of 2 neutral molecules contradict this order of the indices" in told
    main([*command, "--born-charge-order", "polarization-first"])
    assert "of 2 of 2 neutral molecules agree" in capsys.readouterr().out
    born = read(tmp_path / "out.xyz", 0).arrays["born_effective_charge"]
    np.testing.assert_allclose(born, with_born_charges("bec")[1], atol=1e-7)


def test_born_charges_of_another_shape(tmp_path):
    """The message names the file and the shape, as large as the numbers are many."""
    atoms, _ = with_born_charges("bec")
    atoms.arrays["bec"] = atoms.arrays["bec"][:, :6]
    write(tmp_path / "in.xyz", [MOLECULE, atoms], format="extxyz")
    message = r"in.xyz: structure 1 .*'bec' must be 3 x 9 numbers \(atoms x 9\), it is 3 x 6$"
    with pytest.raises(SystemExit, match=message):
        main(["prepare", str(tmp_path / "in.xyz"), str(tmp_path / "out.xyz")])


def test_born_charges_without_a_number():
    atoms, _ = with_born_charges("bec")
    atoms.arrays["bec"][:] = np.nan
    summary = prepare([MOLECULE.copy(), atoms])
    assert (summary.born_charges, summary.empty_born_charges) == (0, 1)
    assert "born_effective_charge" not in atoms.arrays
    assert "Born charges all NaN: no labels              1" in str(summary)


@pytest.mark.parametrize("name", ["bec", "born_effective_charge", "born_effective_charges"])
@pytest.mark.parametrize("shape", [(27,), (3, 9), (3, 3, 3)])
def test_born_charges_in_the_comment_line(name, shape, tmp_path):
    atoms, born = MOLECULE.copy(), with_born_charges("bec")[1]
    atoms.info[name] = born.reshape(shape)
    write(tmp_path / "in.xyz", atoms, format="extxyz")
    summary = prepare_file(tmp_path / "in.xyz", tmp_path / "out.xyz")
    assert (summary.born_charges, summary.left_in_comment) == (1, [])
    atoms = read(tmp_path / "out.xyz")
    np.testing.assert_allclose(atoms.arrays["born_effective_charge"], born, atol=1e-7)
    assert name not in atoms.info


@pytest.mark.parametrize("values", ["dft", np.ones(18), np.ones((9, 3))])
def test_something_else_in_the_comment_line(values):
    atoms = MOLECULE.copy()
    atoms.info["bec"] = values
    summary = prepare([atoms, MOLECULE.copy()])
    assert atoms.info["bec"] is values and summary.born_charges == 0
    assert "bec stays in the comment line of 1 structures and is no label" in str(summary)


def test_column_and_comment_line():
    atoms, born = with_born_charges("bec", bec=np.ones(27))
    summary = prepare([atoms])
    np.testing.assert_allclose(atoms.arrays["born_effective_charge"], born, atol=1e-12)
    assert "bec stays in the comment line of 1 structures and is no label" in str(summary)


def test_born_charges_transposed_twice(tmp_path):
    write(tmp_path / "in.xyz", with_born_charges("bec", True)[0], format="extxyz")
    first = prepare_file(tmp_path / "in.xyz", tmp_path / "1.xyz", polarization_first=True)
    assert "Born charges of 1 structures had the polarisation first and were transp" in str(first)
    assert "Use --born-charge-order polarization-first once" in str(first)
    assert "already" not in str(first)
    second = prepare_file(tmp_path / "1.xyz", tmp_path / "2.xyz", polarization_first=True)
    assert "1 of these were called born_effective_charge already" in str(second)
    assert "transposed" not in str(prepare_file(tmp_path / "1.xyz", tmp_path / "2.xyz"))
