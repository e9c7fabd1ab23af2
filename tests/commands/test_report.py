"""The report, with a model whose energies are known in closed form."""

# ruff: noqa: UP006, UP035, UP045 (metatomic asks for the annotations of old)
import csv
from typing import Dict, List, Optional

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info

from metatrain_lorem.__main__ import main
from metatrain_lorem.commands.report.evaluation import evaluate
from metatrain_lorem.commands.report.table import errors


class SpringsAndCharge(torch.nn.Module):
    """E = Σ_pairs d² within 5 Å, plus 3 eV/e times the total charge."""

    def __init__(self):
        super().__init__()
        self.register_buffer("device_and_dtype", torch.zeros(1, dtype=torch.float64))

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return [NeighborListOptions(cutoff=5.0, full_list=False, strict=True)]

    def requested_inputs(self) -> Dict[str, ModelOutput]:
        return {"charge": ModelOutput(unit="e", sample_kind="system")}

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        return {"energy": self.energy(systems)}

    def energy(self, systems: List[System]) -> TensorMap:
        energies: list[torch.Tensor] = []
        for system in systems:
            pairs = system.get_neighbor_list(self.requested_neighbor_lists()[0]).values
            charge = system.get_data("charge").block().values
            energies.append((pairs**2).sum().reshape(1, 1) + 3.0 * charge)
        energy = torch.cat(energies)
        labels = Labels("system", torch.arange(len(systems)).reshape(-1, 1))
        properties = Labels("energy", torch.zeros(1, 1, dtype=torch.int32))
        block = TensorBlock(energy, labels, [], properties)
        return TensorMap(Labels("_", torch.zeros(1, 1, dtype=torch.int32)), [block])


class WithCharges(SpringsAndCharge):
    """In addition q = Q/2 ± 0.8 e on Na and Cl, and their dipole moment about the origin."""

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        result: Dict[str, TensorMap] = {"energy": self.energy(systems)}
        single = torch.zeros(1, 1, dtype=torch.int32)
        charges: list[torch.Tensor] = []
        dipoles: list[torch.Tensor] = []
        atoms: list[List[int]] = []
        for index, system in enumerate(systems):
            total = system.get_data("charge").block().values
            q = total.flatten() / 2 + 0.8 * torch.sign(14 - system.types).to(total.dtype)
            charges.append(q.reshape(-1, 1))
            dipoles.append((q @ system.positions).reshape(1, 3, 1))
            for atom in range(len(system)):
                atoms.append([index, atom])
            if bool(system.pbc.any()) and "mtt::dipole_moment" in outputs:
                raise ValueError("periodic structures have no dipole moment")
        if "charge" in outputs:
            samples = Labels(["system", "atom"], torch.tensor(atoms))
            block = TensorBlock(torch.cat(charges), samples, [], Labels("charge", single))
            result["charge"] = TensorMap(Labels("_", single), [block])
        if "mtt::dipole_moment" in outputs:
            samples = Labels("system", torch.arange(len(systems)).reshape(-1, 1))
            xyz = Labels("xyz", torch.arange(3).reshape(-1, 1))
            block = TensorBlock(torch.cat(dipoles), samples, [xyz], Labels("dipole_moment", single))
            result["mtt::dipole_moment"] = TensorMap(Labels("_", single), [block])
        return result


def save(model, path, **outputs):
    capabilities = ModelCapabilities(
        outputs={"energy": ModelOutput(unit="eV", sample_kind="system"), **outputs},
        atomic_types=[11, 17],
        interaction_range=5.0,
        length_unit="angstrom",
        supported_devices=["cpu"],
        dtype="float64",
    )
    AtomisticModel(model.eval(), ModelMetadata(), capabilities).save(path)
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save(SpringsAndCharge(), tmp_path_factory.mktemp("model") / "springs.pt")


@pytest.fixture(scope="module")
def charge_model_path(tmp_path_factory):
    return save(
        WithCharges(),
        tmp_path_factory.mktemp("model") / "charges.pt",
        **{
            "charge": ModelOutput(unit="e", sample_kind="atom"),
            "mtt::dipole_moment": ModelOutput(unit="e*A", sample_kind="system"),
        },
    )


def write_pairs(path, energy_key="energy", forces_key="forces", charges=(0, 1)):
    """Two NaCl pairs 2 and 3 Å apart whose labels differ from the model's in known ways.

    Energies are off by 0.2 and -0.4 eV; the x force is off by 0.3 and -0.6 eV/Å on sodium only.
    """
    frames = []
    errors_of_labels = ((0.2, 0.3), (-0.4, -0.6))
    for distance, charge, (energy_off, force_off) in zip(
        (2.0, 3.0), charges, errors_of_labels, strict=True
    ):
        atoms = Atoms("NaCl", [[0.0, 0, 0], [distance, 0, 0]])
        energy = distance**2 + 3.0 * (charge or 0)
        forces = np.array([[2.0 * distance, 0, 0], [-2.0 * distance, 0, 0]])
        forces[0, 0] -= force_off
        atoms.info[energy_key] = energy - energy_off
        atoms.arrays[forces_key] = forces
        if charge is not None:
            atoms.info["charge"] = charge
        frames.append(atoms)
    write(path, frames, format="extxyz")
    return path


@pytest.fixture
def test_set(tmp_path):
    return write_pairs(tmp_path / "test.xyz")


def test_predictions_are_those_of_the_model(model_path, test_set):
    evaluation = evaluate(model_path, test_set)
    # d² + 3 Q for (2 Å, 0 e) and (3 Å, 1 e)
    np.testing.assert_allclose(evaluation.predicted_energy, [4.0, 12.0], atol=1e-12)
    expected = [[4.0, 0, 0], [-4.0, 0, 0], [6.0, 0, 0], [-6.0, 0, 0]]
    np.testing.assert_allclose(evaluation.predicted_forces, expected, atol=1e-12)
    np.testing.assert_allclose(evaluation.energy, [3.8, 12.4], atol=1e-12)


def test_table(model_path, test_set):
    rows = {row["group"]: row for row in errors(evaluate(model_path, test_set))}
    assert list(rows) == ["all", "Cl", "Na", "charge +0", "charge +1"]
    every = rows["all"]
    assert (every["structures"], every["atoms"]) == (2, 4)
    # per atom: 100 and -200 meV
    assert every["energy RMSE (meV/atom)"] == pytest.approx(np.sqrt((100**2 + 200**2) / 2))
    assert every["energy MAE (meV/atom)"] == pytest.approx(150.0)
    # twelve components, of which two are off by 300 and 600 meV/Å
    assert every["force RMSE (meV/Å)"] == pytest.approx(np.sqrt((300**2 + 600**2) / 12))
    assert every["force MAE (meV/Å)"] == pytest.approx(900 / 12)
    assert rows["Na"]["force MAE (meV/Å)"] == pytest.approx(900 / 6)
    assert rows["Cl"]["force MAE (meV/Å)"] == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(rows["Na"]["energy MAE (meV/atom)"])
    assert rows["charge +0"]["energy MAE (meV/atom)"] == pytest.approx(100.0)
    assert rows["charge +1"]["force MAE (meV/Å)"] == pytest.approx(600 / 6)


def test_missing_labels_are_left_out(model_path, test_set):
    evaluation = evaluate(model_path, test_set)
    evaluation.energy[1] = np.nan
    evaluation.forces[2:] = np.nan
    every = errors(evaluation)[0]
    assert every["energy RMSE (meV/atom)"] == pytest.approx(100.0)
    assert every["force RMSE (meV/Å)"] == pytest.approx(300 / np.sqrt(6))


def test_missing_charge_is_an_error(model_path, tmp_path):
    path = write_pairs(tmp_path / "test.xyz", charges=(1, None))
    with pytest.raises(ValueError, match="test.xyz: structure 1 has no total charge"):
        evaluate(model_path, path)


def test_command_writes_table_and_plot(model_path, tmp_path, capsys):
    path = write_pairs(tmp_path / "test.xyz", "dft_energy", "dft_forces")
    folder = tmp_path / "new" / "folder"
    keys = ["--energy-key", "dft_energy", "--forces-key", "dft_forces"]
    main(["report", str(model_path), str(path), "-o", str(folder), *keys])
    printed = capsys.readouterr().out
    # the number of test_table, rounded: sqrt((100² + 200²) / 2) meV/atom
    assert "158.11" in printed.splitlines()[2]
    with open(folder / "report.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["energy RMSE (meV/atom)"]) == pytest.approx(158.1138830)
    assert (folder / "parity.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def charged_test_set(tmp_path):
    """As test_set, but four structures, of which two lack labels, and one is periodic.

    Charges are off by 0.01 and -0.03 e on sodium, and a dipole component by 0.05 e Å.
    """
    frames = read(write_pairs(tmp_path / "test.xyz"), ":") * 2
    frames = [atoms.copy() for atoms in frames]
    for atoms, energy, error in zip(frames, (4.0, 12.0) * 2, (0.01, -0.03, 0.0, 0.0), strict=True):
        charges = atoms.info["charge"] / 2 + np.array([0.8, -0.8])
        atoms.arrays["atomic_charge"] = charges - [error, 0.0]
        atoms.info["dipole_moment"] = charges @ atoms.positions
        atoms.arrays["forces"] = np.zeros((2, 3))
        atoms.info["energy"] = energy
    frames[0].info["dipole_moment"] += [0.0, 0.05, 0.0]
    frames[1].cell, frames[1].pbc = np.eye(3) * 20, True
    frames[2].arrays["atomic_charge"] = np.full(2, np.nan)
    frames[2].info["dipole_moment"] = np.full(3, np.nan)
    del frames[3].arrays["atomic_charge"], frames[3].info["dipole_moment"]
    write(tmp_path / "test.xyz", frames, format="extxyz")
    return tmp_path / "test.xyz"


def test_charges_and_dipoles(charge_model_path, charged_test_set):
    evaluation = evaluate(charge_model_path, charged_test_set)
    expected = [0.8, -0.8, 1.3, -0.3] + 4 * [np.nan]
    np.testing.assert_allclose(evaluation.predicted_atomic_charges, expected, atol=1e-12)
    # about the origin, where sodium is: -0.8 e at 2 Å
    expected = [[-1.6, 0.0, 0.0]] + 3 * [[np.nan] * 3]
    np.testing.assert_allclose(evaluation.predicted_dipoles, expected, atol=1e-12)

    rows = {row["group"]: row for row in errors(evaluation)}
    charge = {name: row["charge RMSE (me)"] for name, row in rows.items()}
    assert charge["all"] == pytest.approx(np.sqrt((10**2 + 30**2) / 4))
    assert charge["Na"] == pytest.approx(np.sqrt((10**2 + 30**2) / 2))
    assert charge["Cl"] == pytest.approx(0.0, abs=1e-9)
    assert charge["charge +1"] == pytest.approx(np.sqrt(30**2 / 2))
    assert rows["all"]["charge MAE (me)"] == pytest.approx(40 / 4)
    assert rows["Na"]["charge MAE (me)"] == pytest.approx(40 / 2)
    dipole = {name: row["dipole RMSE (me Å)"] for name, row in rows.items()}
    assert dipole["all"] == dipole["charge +0"] == pytest.approx(50 / np.sqrt(3))
    assert np.isnan([dipole["Na"], dipole["charge +1"]]).all()


def test_command_with_charges(charge_model_path, charged_test_set, tmp_path, capsys):
    frames = read(charged_test_set, ":")
    for atoms in frames[:3]:
        atoms.arrays["hirshfeld"] = atoms.arrays.pop("atomic_charge")
    write(charged_test_set, frames, format="extxyz")
    command = ["report", str(charge_model_path), str(charged_test_set), "-o", str(tmp_path)]
    main([*command, "--charges-key", "hirshfeld"])
    header, _, every = capsys.readouterr().out.splitlines()[:3]
    dipole = "dipole RMSE (me Å) | dipole MAE (me Å) | dipole R² |"
    assert header.endswith("| charge RMSE (me) | charge MAE (me) | " + dipole)
    # the reference is (-1.65, 0, 0) e Å
    r2 = 1 - 0.05**2 / (2 / 3 * 1.65**2)
    assert every.split()[-10:-1:2] == ["15.81", "10.00", "28.87", "16.67", f"{r2:.4f}"]
    plot = (tmp_path / "parity.png").read_bytes()
    with open(tmp_path / "report.csv", encoding="utf-8") as file:
        assert float(next(csv.DictReader(file))["charge MAE (me)"]) == pytest.approx(10.0)
    # four panels instead of three
    main(command)
    assert "charge RMSE" not in capsys.readouterr().out
    width = [int.from_bytes(x[16:20]) for x in (plot, (tmp_path / "parity.png").read_bytes())]
    assert width[0] * 3 == width[1] * 4


def test_model_without_charges_has_no_columns_for_them(model_path, charged_test_set):
    assert list(errors(evaluate(model_path, charged_test_set))[0])[-1] == "force MAE (meV/Å)"


@pytest.mark.parametrize(
    "name, values, message",
    [("atomic_charge", np.zeros((2, 3)), "one number per atom"), ("dipole_moment", 1.0, "three")],
)
def test_labels_of_wrong_shape(
    charge_model_path, model_path, charged_test_set, name, values, message
):
    frames = read(charged_test_set, ":")
    place = frames[1 if name == "atomic_charge" else 2]
    (place.arrays if name == "atomic_charge" else place.info)[name] = values
    write(charged_test_set, frames, format="extxyz")
    with pytest.raises(ValueError, match=rf"structure [12]: '{name}' is not {message}"):
        evaluate(charge_model_path, charged_test_set)
    evaluate(model_path, charged_test_set)  # it has nothing to compare them with


@pytest.mark.parametrize(
    "keys, message",
    [
        (["--energy-key", "total"], "structure 0 has no 'total', only: .*name the right .*-energy"),
        (["--forces-key", "grad"], "structure 0 has no 'grad', only: .*name the right .*--forces"),
    ],
)
def test_missing_key_is_named(model_path, test_set, keys, message):
    with pytest.raises(SystemExit, match=message):
        main(["report", str(model_path), str(test_set), *keys])


def test_missing_model_is_an_error(test_set, tmp_path):
    with pytest.raises(SystemExit, match="error: .*nothing.pt"):
        main(["report", str(tmp_path / "nothing.pt"), str(test_set)])


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"cartesian": {"rank": 1}}, marks=pytest.mark.slow),
        {"spherical": {"irreps": [(1, 1)]}},
    ],
)
def test_dipoles_of_a_model_in_debye(lorem, tmp_path, kind):
    section = {"quantity": "dipole", "unit": "debye", "type": kind, "num_subtargets": 1}
    if "spherical" in kind:
        section["type"] = {"spherical": {"irreps": [{"o3_lambda": 1, "o3_sigma": 1}]}}
    name = "mtt::dipole_moment"
    targets = {
        "energy": get_energy_target_info("energy", {"unit": "eV"}),
        name: get_generic_target_info(name, {**section, "sample_kind": "system"}),
    }
    model = lorem.new_model(targets=targets, charge_equilibration={"enable": True})
    model.export().save(str(tmp_path / "model.pt"))
    frames = [lorem.frames["molecule"], lorem.frames["molecule"].copy()]
    frames[1].rotate(70, "x")
    for frame in frames:
        frame.info.update(energy=0.0, dipole_moment=[0.0, 0.0, 0.0])
        frame.arrays["forces"] = np.zeros((len(frame), 3))
    write(tmp_path / "test.xyz", frames)
    predicted = evaluate(tmp_path / "model.pt", tmp_path / "test.xyz").predicted_dipoles
    charges = lorem.values(model, frames, "charge", "atom").reshape(2, -1)
    for frame, q, dipole in zip(frames, charges, predicted, strict=True):
        expected = q.numpy() @ (frame.positions - frame.get_center_of_mass())
        np.testing.assert_allclose(dipole, expected, atol=1e-6)
