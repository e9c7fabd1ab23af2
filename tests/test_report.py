"""The report, with a model whose energies are known in closed form."""

# ruff: noqa: UP006, UP035, UP045 (metatomic asks for the annotations of old)
import csv
from typing import Dict, List, Optional

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)

from metatrain_lorem.__main__ import main
from metatrain_lorem.report import errors, evaluate


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
        energies: list[torch.Tensor] = []
        for system in systems:
            pairs = system.get_neighbor_list(self.requested_neighbor_lists()[0]).values
            charge = system.get_data("charge").block().values
            energies.append((pairs**2).sum().reshape(1, 1) + 3.0 * charge)
        energy = torch.cat(energies)
        labels = Labels("system", torch.arange(len(systems)).reshape(-1, 1))
        properties = Labels("energy", torch.zeros(1, 1, dtype=torch.int32))
        block = TensorBlock(energy, labels, [], properties)
        return {"energy": TensorMap(Labels("_", torch.zeros(1, 1, dtype=torch.int32)), [block])}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    capabilities = ModelCapabilities(
        outputs={"energy": ModelOutput(unit="eV", sample_kind="system")},
        atomic_types=[11, 17],
        interaction_range=5.0,
        length_unit="angstrom",
        supported_devices=["cpu"],
        dtype="float64",
    )
    path = tmp_path_factory.mktemp("model") / "springs.pt"
    AtomisticModel(SpringsAndCharge().eval(), ModelMetadata(), capabilities).save(path)
    return path


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


def test_missing_charge_counts_as_zero(model_path, tmp_path, caplog):
    path = write_pairs(tmp_path / "test.xyz", charges=(None, 1))
    evaluation = evaluate(model_path, path)
    assert evaluation.predicted_energy[0] == pytest.approx(4.0)
    assert "1 structures have no total charge" in caplog.text
    assert [row["group"] for row in errors(evaluation)] == ["all", "Cl", "Na", "charge +1"]


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
