"""What the benchmark says of slabs and bulk."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import Calculator

FOLDER = Path(__file__).parents[1] / "benchmarks" / "accuracy"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"needs the repository: no folder {FOLDER}"
)
ATOMS_OF_A_LAYER = 16


class ByLayers(Calculator):
    """An energy per atom and one per surface; the charge of sodium; a plate capacitor in a box."""

    implemented_properties = ["energy"]
    excess = 0.0  # of each atom in a slab, eV
    takes_slabs = True
    charge_of_bulk = 0.7
    fails = False

    class _model:  # noqa: N801
        @staticmethod
        def capabilities():
            return type("Capabilities", (), {"outputs": ["energy", "charge"]})

    def calculate(self, atoms, properties, system_changes):
        super().calculate(atoms, properties, system_changes)
        if not self.takes_slabs and not atoms.pbc[2]:
            raise RuntimeError("Traceback\nno slabs")
        if self.fails and atoms.pbc[2]:
            raise RuntimeError("no memory")
        heights = atoms.positions[:, 2]
        vacuum = atoms.cell[2, 2] - np.ptp(heights) if atoms.pbc[2] else np.inf
        open_surface = vacuum > 5.0
        energy = -3.0 * len(atoms) + open_surface * (1.5 + self.excess * len(atoms))
        moment = heights[atoms.numbers == 11].sum() - heights[atoms.numbers == 17].sum()
        if atoms.pbc[2]:
            energy -= moment**2 / atoms.cell[2, 2]
        self.results = {"energy": energy}

    def run_model(self, atoms, outputs):
        import torch

        charge = self.charge_of_bulk if atoms.pbc[2] else 0.7
        charges = torch.where(torch.tensor(atoms.numbers) == 11, charge, -charge)
        # the outer layers have others
        outside = np.abs(atoms.positions[:, 2] - atoms.positions[:, 2].mean()) > 8.0
        charges[torch.tensor(outside)] = 0.0
        values = type("Block", (), {"values": charges})
        return {name: type("Map", (), {"block": lambda self: values})() for name in outputs}


@pytest.fixture
def slab_and_bulk(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("slab_and_bulk")
    for name in ("slab_and_bulk", "models", "datasets", "result_tables"):
        sys.modules.pop(name, None)


def found(slab_and_bulk, monkeypatch, **properties) -> dict:
    calculator = ByLayers()
    for name, value in properties.items():
        setattr(calculator, name, value)
    monkeypatch.setattr("metatomic_ase.MetatomicCalculator", lambda *args, **kwargs: calculator)
    return slab_and_bulk.evaluate("model.pt", "extensions")


def test_ideal_slabs(slab_and_bulk):
    """A neighbour of the other kind in each direction, along which there is one."""
    for layers, pbc in ((4, slab_and_bulk.BULK), (3, slab_and_bulk.SLAB)):
        atoms = slab_and_bulk.salt(layers, pbc)
        assert len(atoms) == ATOMS_OF_A_LAYER * layers and (atoms.numbers == 11).mean() == 0.5
        distances = atoms.get_all_distances(mic=True) + 99.0 * np.eye(len(atoms))
        i, j = np.nonzero(distances < slab_and_bulk.SPACING + 0.01)
        assert (atoms.numbers[i] != atoms.numbers[j]).all()
        counts = np.bincount(i)
        assert set(counts) == ({6} if pbc[2] else {5, 6})
    boxed = slab_and_bulk.dipolar(slab_and_bulk.BULK, 20.0)
    assert boxed.cell[2, 2] == pytest.approx(4 * 2.75 + 20.0)
    shift = boxed.positions - slab_and_bulk.salt(4, slab_and_bulk.SLAB).positions
    np.testing.assert_allclose(shift, np.outer(boxed.numbers == 11, [0.0, 0.0, 0.2]))


def test_surfaces_do_not_count(slab_and_bulk, monkeypatch):
    """But what each atom has more in a slab does, and images of the dipole moment."""
    same = found(slab_and_bulk, monkeypatch)
    np.testing.assert_allclose(list(same["layer"].values()), 0.0, atol=1e-3)
    assert list(same["layer"]) == list(slab_and_bulk.LAYERS[1:])
    assert same["charge"] == pytest.approx(0.0, abs=1e-3)
    atoms = 4 * ATOMS_OF_A_LAYER
    for height, energy in same["vacuum"].items():
        expected = -((0.2 * atoms / 2) ** 2) / (4 * 2.75 + height) / atoms
        assert energy == pytest.approx(1e3 * expected, abs=1e-3)
    other = found(slab_and_bulk, monkeypatch, excess=0.02, charge_of_bulk=0.75)
    np.testing.assert_allclose(list(other["layer"].values()), 20.0, atol=1e-3)
    assert other["charge"] == pytest.approx(-50.0, abs=1e-3)


def test_models_without_slabs(slab_and_bulk, monkeypatch):
    """They get crystals with vacuum."""
    result = found(slab_and_bulk, monkeypatch, takes_slabs=False, excess=0.02)
    assert result["refused"] == "no slabs" and "vacuum" not in result
    np.testing.assert_allclose(list(result["layer"].values()), 20.0, atol=1e-3)
    # other failures are not taken for that
    with pytest.raises(RuntimeError, match="no memory"):
        found(slab_and_bulk, monkeypatch, fails=True)


def test_table_and_picture(slab_and_bulk, monkeypatch, tmp_path):
    """One that has no slabs, one that disagrees, one that agrees; in the usual order."""
    results = [
        {
            "model": name,
            "minutes": 1,
            "seed": 0,
            "epochs": 9,
            **found(slab_and_bulk, monkeypatch, **x),
        }
        for name, x in (
            ("soap-bpnn-lr", {"takes_slabs": False}),
            ("lorem-lr", {"excess": 0.02}),
            ("lorem-qeq", {}),
        )
    ]
    # another training of the first one
    results.append({**results[0], "minutes": 4, "seed": 1})
    (tmp_path / slab_and_bulk.RESULT).write_text(json.dumps(results))
    results = slab_and_bulk.read_results(tmp_path)
    rows = slab_and_bulk.section(results).split("   * - ")[2:]
    cells = [[x.strip() for x in row.strip().split("\n     -")] for row in rows]
    assert [x[0].split(",")[0] for x in cells] == ["lorem"] * 2 + ["SOAP-BPNN"] * 2
    verdicts, trainings = [x[5] for x in cells], [x[6:] for x in cells]
    assert verdicts == ["no", "yes", "yes", "yes"]
    assert trainings == [["1", "9", "0"]] * 3 + [["4", "9", "1"]]
    assert [x[1] for x in cells] == ["20.00", "0.00", "0.00", "0.00"]
    assert cells[2][3] == "fails on slabs"
    slab_and_bulk.draw(results, lambda name: ("tab:blue", "o", "-"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10000
    assert slab_and_bulk.read_results(tmp_path / "nothing") == []
