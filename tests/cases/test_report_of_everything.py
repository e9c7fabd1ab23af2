"""The report of every target that model and file have, and of structures of other charges."""

import csv
import re

import ase
import numpy as np
import pytest
from ase.io import write
from helpers import models
from metatomic.torch import ModelCapabilities, ModelOutput
from metatomic_ase import MetatomicCalculator
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info

from metatrain_lorem.__main__ import main
from metatrain_lorem.commands.report import labels
from metatrain_lorem.commands.report.comparisons import find_comparisons
from metatrain_lorem.commands.report.evaluation import evaluate
from metatrain_lorem.commands.report.labels import Keys
from metatrain_lorem.commands.report.parity_plot import _panels, plot_parity
from metatrain_lorem.commands.report.table import errors

pytestmark = pytest.mark.usefixtures("interpreted")

ENERGY = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
SHORT = {"long_range": {"enable": False}}


def generic(name: str, kind, sample_kind: str, unit: str = ""):
    section = {"quantity": "", "unit": unit, "type": kind, "num_subtargets": 1}
    return get_generic_target_info(name, {**section, "sample_kind": sample_kind})


def frames() -> list[ase.Atoms]:
    """A crystal, a slab and a molecule, with energies and forces of zero."""
    made = [models.bulk(), models.slab(), models.molecule()]
    for frame in made:
        frame.info["energy"] = 0.0
        frame.arrays["forces"] = np.zeros((len(frame), 3))
    return made


@pytest.mark.parametrize("form", ["matrix", pytest.param("Voigt", marks=pytest.mark.slow)])
def test_stress(tmp_path, form):
    """Of the structures for which it means something, as a matrix or as six numbers."""
    models.new_model(**SHORT).export().save(tmp_path / "model.pt")
    made = frames()
    crystal = made[0].copy()
    crystal.calc = MetatomicCalculator(tmp_path / "model.pt")
    stress = crystal.get_stress(voigt=form == "Voigt")
    stress[0] += 0.006  # all of the first row of the matrix; the first of Voigt's numbers
    for frame in made:
        frame.info["dft_stress"] = stress
    write(tmp_path / "test.xyz", made)
    command = ["report", str(tmp_path / "model.pt"), str(tmp_path / "test.xyz")]
    main([*command, "-o", str(tmp_path), "--stress-key", "dft_stress"])
    with open(tmp_path / "report.csv", encoding="utf-8") as file:
        (every, *_) = csv.DictReader(file)
    of_nine = {"matrix": 3, "Voigt": 1}[form]
    expected = 6 * np.sqrt(of_nine / 9)
    assert float(every["stress RMSE (meV/Å³)"]) == pytest.approx(expected, rel=1e-4)
    assert float(every["stress MAE (meV/Å³)"]) == pytest.approx(6 * of_nine / 9, rel=1e-4)
    # there is none in the file, as it is looked for
    assert evaluate(tmp_path / "model.pt", tmp_path / "test.xyz").stress is None


TARGETS = {
    "mtt::gap": generic("mtt::gap", "scalar", "system", "eV"),
    "mtt::push": generic("mtt::push", {"cartesian": {"rank": 1}}, "atom"),
    "mtt::quadrupole": generic("mtt::quadrupole", {"cartesian": {"rank": 2}}, "system"),
}


@pytest.mark.parametrize("with_energy", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_targets(tmp_path, capsys, with_energy):
    """Scalars and tensors of atoms and structures, with an energy or without."""
    model = models.new_model({**(ENERGY if with_energy else {}), **TARGETS}, **SHORT)
    model.export().save(tmp_path / "model.pt")
    made = frames()
    gaps = models.values(model, made, "mtt::gap").numpy().flatten() + [0.3, 0.0, 0.0]
    quadrupoles = models.values(model, made, "mtt::quadrupole").numpy()[..., 0]
    pushes = models.values(model, made, "mtt::push", "atom").numpy()[..., 0]
    pushes[:, 1] += 2.0
    first = 0
    for frame, gap, quadrupole in zip(made, gaps, quadrupoles, strict=True):
        frame.info.update(gap=gap, quadrupole=quadrupole.flatten())
        frame.arrays["pushed"] = pushes[first : first + len(frame)]
        first += len(frame)
    del made[1].info["quadrupole"]
    made[0].info["quadrupole"] = made[0].info["quadrupole"] + 0.5
    write(tmp_path / "test.xyz", made)
    key = ["--target-key", "mtt::push", "pushed"]
    command = ["report", str(tmp_path / "model.pt"), str(tmp_path / "test.xyz")]
    main([*command, "-o", str(tmp_path), *key])
    header = capsys.readouterr().out.splitlines()[0]
    assert ("energy RMSE" in header) == with_energy
    with open(tmp_path / "report.csv", encoding="utf-8") as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    every = rows["all"]
    assert float(every["mtt::gap RMSE (eV)"]) == pytest.approx(0.3 / np.sqrt(3), rel=1e-5)
    assert float(every["mtt::gap MAE (eV)"]) == pytest.approx(0.1, rel=1e-5)
    assert float(every["mtt::push RMSE"]) == pytest.approx(2 / np.sqrt(3), rel=1e-5)
    assert float(every["mtt::push MAE"]) == pytest.approx(2 / 3, rel=1e-5)
    # of two structures that have one
    assert float(every["mtt::quadrupole MAE"]) == pytest.approx(0.25, rel=1e-5)
    assert float(rows["O"]["mtt::push MAE"]) == pytest.approx(2 / 3, rel=1e-5)
    assert rows["O"]["mtt::gap MAE (eV)"] == "nan"
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_born_charges_and_dipoles(tmp_path, capsys):
    """What charges make, without having been a target: each element and component."""
    model = models.new_model(charge_equilibration={"enable": True}, **SHORT)
    model.export().save(tmp_path / "model.pt")
    made = frames()
    name = "mtt::born_effective_charge"
    born = models.values(model, made, name, "atom").numpy()[..., 0]
    dipole = models.values(model, made, "mtt::polarization").numpy()[2, :, 0]
    made[2].info["dipole_moment"] = dipole + [0.0, 0.3, 0.0]
    elements = np.concatenate([frame.get_chemical_symbols() for frame in made])
    shifted = born.copy()
    shifted[elements == "O", 0, 2] += 0.6
    for frame, part in zip(made, np.split(shifted, [6, 11]), strict=True):
        frame.arrays["bec"] = part.reshape(-1, 9)
    write(tmp_path / "test.xyz", made)
    key = ["--target-key", name, "bec"]
    command = ["report", str(tmp_path / "model.pt"), str(tmp_path / "test.xyz")]
    main([*command, "-o", str(tmp_path), *key])
    with open(tmp_path / "report.csv", encoding="utf-8") as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    number = (elements == "O").sum()
    for group, atoms in (("all", len(elements)), ("O", number)):
        row = rows[group]
        rmse = 0.6 * np.sqrt(number / atoms / 9)
        assert float(row["Born charge RMSE (me)"]) == pytest.approx(1e3 * rmse, rel=1e-4)
        chosen = shifted if group == "all" else shifted[elements == "O"]
        r2 = 1 - rmse**2 / chosen.var()
        assert float(row["Born charge R²"]) == pytest.approx(r2, rel=1e-4)
    assert float(rows["N"]["Born charge RMSE (me)"]) < 1e-2
    # displacement along x, polarisation along z
    column = rows["Born charge xz"]
    rmse = 0.6 * np.sqrt(number / len(elements))
    assert float(column["Born charge RMSE (me)"]) == pytest.approx(1e3 * rmse, rel=1e-4)
    r2 = 1 - rmse**2 / shifted[:, 0, 2].var()
    assert float(column["Born charge R²"]) == pytest.approx(r2, rel=1e-4)
    assert column["energy RMSE (meV/atom)"] == column["dipole MAE (me Å)"] == "nan"
    assert float(rows["Born charge zx"]["Born charge RMSE (me)"]) < 1e-2
    assert float(rows["dipole y"]["dipole MAE (me Å)"]) == pytest.approx(300, rel=1e-4)
    assert float(rows["dipole x"]["dipole MAE (me Å)"]) < 1e-2
    assert "Born charge RMSE (me)" in capsys.readouterr().out
    for frame in made:
        frame.arrays["bec"] = np.zeros((len(frame), 6))
    write(tmp_path / "test.xyz", made)
    message = f"test.xyz: structure 0, key 'bec': .*'{name}' has 9 numbers per atom, its label 6$"
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "model.pt", tmp_path / "test.xyz", Keys(outputs={name: "bec"}))


@pytest.mark.parametrize(
    "key, label, message",
    [
        (["mtt::quadrupole", "gap"], 1.0, "'mtt::quadrupole' has 9 numbers, its label 1"),
        (["mtt::gap", "gap"], "wide", "structure 0: 'gap' is not a number"),
        (["mtt::nothing", "gap"], 1.0, "the model has no output 'mtt::nothing'"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, key, label, message):
    models.new_model(TARGETS, **SHORT).export().save(tmp_path / "model.pt")
    made = frames()
    for frame in made:
        frame.info["gap"] = label
    write(tmp_path / "test.xyz", made)
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "model.pt", tmp_path / "test.xyz", Keys(outputs=dict([key])))


BORN = "mtt::born_effective_charge"
SHAPES = {
    "energy": (),
    "forces": (-1, 3),
    "stress": (9,),
    "dipole_moment": (3,),
    "atomic_charge": (-1,),
    "born_effective_charge": (-1, 9),
    "gap": (),
}


@pytest.mark.parametrize("key", SHAPES)
def test_infinite_labels(key):
    """Refused as in training."""
    outputs = {"charge": ModelOutput(sample_kind="atom"), BORN: ModelOutput(sample_kind="atom")}
    for name in ("energy", "mtt::dipole_moment", "mtt::gap"):
        outputs[name] = ModelOutput(sample_kind="system")
    capabilities = ModelCapabilities(outputs=outputs)
    made = [models.molecule(), models.bulk() if key == "stress" else models.molecule()]
    per_atom = SHAPES[key][:1] == (-1,)
    values = np.zeros([len(made[1]) if n == -1 else n for n in SHAPES[key]])
    values[(*[-1] * values.ndim,)] = -np.inf
    (made[1].arrays if per_atom else made[1].info)[key] = values
    with pytest.raises(ValueError, match=f"test.xyz: structure 1: '{key}' is infinite"):
        labels.energies(made, "test.xyz", "energy")
        labels.forces(made, "test.xyz", "forces")
        find_comparisons(capabilities, "energy", made, Keys(), "test.xyz")


def test_nothing_to_compare(tmp_path):
    models.new_model(TARGETS, **SHORT).export().save(tmp_path / "model.pt")
    write(tmp_path / "test.xyz", frames())
    with pytest.raises(ValueError, match="test.xyz holds nothing to compare .*mtt::gap"):
        evaluate(tmp_path / "model.pt", tmp_path / "test.xyz")


def test_baseline_of_the_model(tmp_path):
    """As many structures as elements: a fit of the test set would leave nothing to look at."""
    baseline = {1: -10.0, 6: -1000.0, 7: -1500.0, 8: -2000.0}
    model = models.new_model(**SHORT)
    model.additive_models[0].model.fit({"energy": baseline}, targets_to_fit=["energy"])
    model.export().save(tmp_path / "model.pt")
    made = [ase.Atoms(f"{symbol}2", [[0, 0, 0], [0, 0, 1.1]]) for symbol in "HCNO"]
    sums = np.array([2 * baseline[int(frame.numbers[0])] for frame in made])
    shifted = sums + [1.0, -2.0, 3.0, -4.0]
    for frame, energy in zip(made, shifted, strict=True):
        frame.info["energy"] = energy
        frame.arrays["forces"] = np.zeros((2, 3))
    write(tmp_path / "test.xyz", made)
    evaluation = evaluate(tmp_path / "model.pt", tmp_path / "test.xyz")
    np.testing.assert_allclose(evaluation.baseline, sums)
    _, reference, predicted, _ = _panels(evaluation)["Energy, model's baseline removed"]
    np.testing.assert_allclose(reference, [0.5, -1.0, 1.5, -2.0])
    np.testing.assert_allclose(predicted, (evaluation.predicted_energy - sums) / 2)
    plot_parity({"model": evaluation}, tmp_path / "parity.png")
    assert np.isfinite(errors(evaluation)[0]["energy RMSE (meV/atom)"])


def report(tmp_path, made, *arguments):
    """First row of the table, and the panels of the plot."""
    model = models.new_model(**SHORT)
    model.export().save(tmp_path / "model.pt")
    write(tmp_path / "test.xyz", made)
    command = ["report", str(tmp_path / "model.pt"), str(tmp_path / "test.xyz")]
    main([*command, "-o", str(tmp_path), *arguments])
    with open(tmp_path / "report.csv", encoding="utf-8") as file:
        (every, *_) = csv.DictReader(file)
    return every, list(_panels(evaluate(tmp_path / "model.pt", tmp_path / "test.xyz")))


@pytest.mark.parametrize("lacking", ["energy", "forces"])
def test_file_without_forces_or_energies(tmp_path, caplog, lacking):
    """What is there is compared."""
    made = frames()
    for frame in made:
        (frame.info if lacking == "energy" else frame.arrays).pop(lacking)
    every, panels = report(tmp_path, made)
    energy, force = lacking == "forces", lacking == "energy"
    assert ("energy RMSE (meV/atom)" in every, "force RMSE (meV/Å)" in every) == (energy, force)
    assert len(panels) == 1 and ("Force components" in panels) == force
    assert f"structure 0 has no '{lacking}'" in caplog.text
    assert "3 of 3 structures have none and are left out (--" in caplog.text


def test_structures_without_forces(tmp_path, caplog):
    """As if they were NaN."""
    made = frames()
    made[1].arrays["forces"][:] = np.nan
    expected, _ = report(tmp_path, made)
    assert "have none" not in caplog.text
    del made[1].arrays["forces"]
    model, test = tmp_path / "model.pt", tmp_path / "test.xyz"
    for i, frame in enumerate(made):
        write(test, frame, append=i > 0)
    (every, *_) = errors(evaluate(model, test))
    assert "structure 1 has no 'forces'" in caplog.text
    assert "1 of 3 structures have none" in caplog.text
    name = "force RMSE (meV/Å)"
    assert every[name] == pytest.approx(float(expected[name]), rel=1e-4)


def test_file_without_any_label(tmp_path):
    made = frames()
    for frame in made:
        frame.info.clear()
        del frame.arrays["forces"]
    with pytest.raises(SystemExit, match="holds nothing to compare the outputs of"):
        report(tmp_path, made)


@pytest.mark.parametrize("name, value", [("energy", [1.0, 2.0]), ("forces", 1.0)])
def test_labels_of_another_shape(tmp_path, name, value):
    made = frames()
    if name == "energy":
        made[1].info[name] = np.array(value)
    else:
        made[1].arrays[name] = np.ones(len(made[1]))
    with pytest.raises(SystemExit, match=f"test.xyz: structure 1: '{name}' is not "):
        report(tmp_path, made)


def legends(evaluation) -> str:
    """All that the legends of the plot say."""
    with pytest.MonkeyPatch.context() as patch:
        drawn = []
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, *_, **__: drawn.append(self))
        plot_parity({"model": evaluation}, "nowhere.png")
    return "; ".join(t.get_text() for axes in drawn[0].axes for t in axes.get_legend().get_texts())


def test_missing_labels_are_counted(tmp_path, capsys):
    """Of NaN and of keys that are not there; stress of the crystal alone means something."""
    made = frames()
    made[0].info["energy"] = np.nan
    made[1].arrays["forces"][2:] = np.nan
    made[0].info["stress"] = np.zeros((3, 3))
    report(tmp_path, made)
    atoms, lost = sum(len(frame) for frame in made), len(made[1]) - 2
    assert (
        f"Missing labels, left out: energy of 1 of 3 structures; force of {lost} of {atoms} atoms "
        "(in 1 of 3 structures); stress of 2 of 3 structures\n"
    ) in capsys.readouterr().out
    text = legends(evaluate(tmp_path / "model.pt", tmp_path / "test.xyz"))
    for count in ("1 of 3", f"{lost} of {atoms}", "2 of 3"):
        assert f"\n{count} labels missing" in text


def test_nothing_is_missing(tmp_path, capsys):
    made = frames()
    report(tmp_path, made)
    assert "issing" not in capsys.readouterr().out
    assert "missing" not in legends(evaluate(tmp_path / "model.pt", tmp_path / "test.xyz"))


@pytest.mark.parametrize("name", ["energy", "forces"])
def test_all_labels_are_nan(tmp_path, caplog, name):
    """The file has the key, so that nobody would expect the column to be gone."""
    made = frames()
    for frame in made:
        (frame.info if name == "energy" else frame.arrays)[name] *= np.nan
    report(tmp_path, made)
    assert re.search(f"test.xyz: all .* '{name}' are NaN", caplog.text)
