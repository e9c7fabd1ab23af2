"""Born charges as a target, predicted or derived: from the file to the trained model."""

import re

import ase.io
import numpy as np
import pytest
import torch
from metatomic.torch import ModelOutput
from metatrain.utils.data import DatasetInfo, get_atomic_types, get_dataset
from metatrain.utils.data.target_info import get_generic_target_info
from metatrain.utils.hypers import init_with_defaults
from metatrain.utils.loss import LossSpecification
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from omegaconf import OmegaConf

from metatrain_lorem.documentation import ModelHypers

BORN = "mtt::born_effective_charge"
EXCESS = "mtt::aux::born_effective_charge_excess"
DEFAULTS = init_with_defaults(ModelHypers)
CHARGES = {1: 0.4, 8: -0.8}


def labelled(small, number=24):
    """Clusters whose Born charges are those of the elements and of pairs, with zero sums."""
    frames = small.structures(number)
    for frame in frames:
        born = np.array([CHARGES[z] for z in frame.numbers])[:, None, None] * np.eye(3)
        for i in range(len(frame)):
            vectors = np.delete(frame.positions - frame.positions[i], i, axis=0)
            decay = np.exp(-((vectors**2).sum(axis=1)))
            born[i] += (
                0.2 * CHARGES[frame.numbers[i]] * np.einsum("n,na,nb->ab", decay, vectors, vectors)
            )
        born -= born.mean(axis=0)
        frame.arrays["bec"] = born.reshape(-1, 9)
    return frames


def read(path):
    """Data set and description, as of an options file."""
    options = small_options(path)
    dataset, targets, _ = get_dataset(options)
    return dataset, DatasetInfo("angstrom", get_atomic_types(dataset), targets)


def small_options(path):
    source = {"read_from": str(path), "reader": "ase"}
    born = {
        **source,
        "quantity": "",
        "key": "bec",
        "unit": "e",
        "type": {"cartesian": {"rank": 2}},
        "sample_kind": "atom",
        "num_subtargets": 1,
        "description": "",
        "forces": False,
        "stress": False,
        "virial": False,
    }
    systems = {**source, "length_unit": "angstrom"}
    return OmegaConf.create({"systems": systems, "targets": {BORN: born}})


def fit(small, frames, folder, epochs=1, **hypers):
    """A model that was trained on the labels of these structures, and its description."""
    ase.io.write(folder / "born.xyz", frames)
    dataset, info = read(folder / "born.xyz")
    model = small.new_model(info, num_spherical_features=4, **hypers)
    loss = {BORN: init_with_defaults(LossSpecification)}
    trainer = small.new_trainer(num_epochs=epochs, loss=loss)
    small.fit(trainer, model, dataset, dataset, folder)
    return model.eval(), dataset


def born_charges(model, dataset):
    systems = [dataset[i]["system"].to(torch.float64) for i in range(len(dataset))]
    lists = model.requested_neighbor_lists()
    systems = [get_system_with_neighbor_lists(system, lists) for system in systems]
    return model(systems, {BORN: ModelOutput(sample_kind="atom")})[BORN].block()


def rmse(model, dataset):
    labels = torch.cat([dataset[i][BORN].block().values for i in range(len(dataset))])
    with torch.no_grad():
        return float((born_charges(model, dataset).values - labels).pow(2).mean().sqrt())


@pytest.mark.parametrize("enable", [False, True], ids=["predicted", "derived"])
def test_learns(small, tmp_path, enable):
    """Without baseline and scale; the sum rule holds throughout."""
    equilibration = {**DEFAULTS["charge_equilibration"], "enable": enable}
    model, dataset = fit(small, labelled(small), tmp_path, 1, charge_equilibration=equilibration)
    start = rmse(model, dataset)
    model, dataset = fit(small, labelled(small), tmp_path, 12, charge_equilibration=equilibration)
    after = rmse(model, dataset)
    spread = torch.cat([dataset[i][BORN].block().values for i in range(24)]).std()
    assert after < 0.7 * start and after < 0.8 * spread
    assert (model.scaler.model.scales[BORN].block().values == 1.0).all()
    for training in (True, False):
        block = born_charges(model.train(training), dataset)
        sums = torch.zeros(24, 3, 3, 1, dtype=torch.float64)
        sums.index_add_(0, block.samples.column("system").long(), block.values.detach())
        assert sums.abs().max() < 1e-12


def test_predicted(lorem):
    """All parts, for any total charge; what the sum rule takes is an output too."""
    section = {"quantity": "", "unit": "e", "num_subtargets": 1, "sample_kind": "atom"}
    section["type"] = {"cartesian": {"rank": 2}}
    target = get_generic_target_info(BORN, {**section, "description": ""})
    model = lorem.new_model({BORN: target}, conditional=True)
    frames = []
    for name, charge in (("bulk", 1.0), ("molecule", -2.0), ("slab", 0.0)):
        frames.append(lorem.frames[name].copy())
        frames[-1].info["charge"] = charge
    outputs = {name: ModelOutput(sample_kind="atom") for name in (BORN, EXCESS)}
    with torch.no_grad():
        results = model(lorem.systems(model, frames), outputs)
    born, excess = (results[name].block().values[..., 0] for name in (BORN, EXCESS))
    start = 0
    for frame in frames:
        atoms = slice(start, start := start + len(frame))
        total = frame.info["charge"] * np.eye(3)
        np.testing.assert_allclose(born[atoms].sum(dim=0), total, atol=1e-12)
        assert (excess[atoms] == excess[atoms][0]).all() and excess[atoms].abs().max() > 1e-3
    symmetric = 0.5 * (born + born.mT)
    isotropic = symmetric.diagonal(dim1=1, dim2=2).mean(dim=1)
    traceless = symmetric - isotropic[:, None, None] * torch.eye(3)
    for part in (isotropic, born - symmetric, traceless):
        assert part.std() > 1e-4


def test_labels_that_violate_the_sum_rule(small, tmp_path):
    frames = labelled(small, 6)
    frames[4].arrays["bec"][0, 4] += 0.11
    with pytest.raises(
        ValueError, match=r"Structure 4 of the training set.*off by 0.11 e from the"
    ):
        fit(small, frames, tmp_path)
    frames[4].arrays["bec"][:] = np.nan
    fit(small, frames, tmp_path)


def test_rounded_sum(small, tmp_path):
    frames = labelled(small, 6)
    frames[2].arrays["bec"][0, 0] += 0.1 + 0.2
    with pytest.raises(ValueError, match=r"sum to \[\[0\.3, -?0\.0, -?0\.0\], .* off by 0\.3 e"):
        fit(small, frames, tmp_path)


@pytest.mark.parametrize("atomic_dipoles", [True, False])
def test_dipoles_of_atoms_without_dipole_moments(small, tmp_path, caplog, atomic_dipoles):
    """Nothing trains them."""
    options = {"enable": True, "atomic_dipoles": atomic_dipoles}
    equilibration = {**DEFAULTS["charge_equilibration"], **options}
    fit(small, labelled(small, 4), tmp_path, 1, charge_equilibration=equilibration)
    text = "atomic_dipoles has no effect: .*'mtt::dipole_moment'"
    assert bool(re.search(text, caplog.text)) == atomic_dipoles
