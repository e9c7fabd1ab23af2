"""metatrain's own test suites for architectures, their bodies as they are."""

import copy
from pathlib import Path

import pytest
import torch
from helpers.backbones import section
from metatensor.torch import Labels
from metatomic.torch import ModelOutput, System
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from metatrain.utils.testing import (
    ArchitectureTests,
    AutogradTests,
    CheckpointTests,
    ExportedTests,
    InputTests,
    OutputTests,
    TorchscriptTests,
    TrainingTests,
)

from metatrain_lorem.model import Lorem

FOLDER = Path(__file__).parent
PRESUME_SHORT_RANGE = {"test_prediction_energy_subset_atoms"}
"""Tests in which molecules far apart must not feel each other."""


def reduced_hypers():
    hypers = copy.deepcopy(get_default_hypers("lorem")["model"])
    hypers.update(num_radial=8, num_features=16, num_spherical_features=4, max_degree=4)
    return hypers


class LoremTests(ArchitectureTests):
    architecture = "lorem"

    @pytest.fixture
    def dataset_path(self):
        # metatrain's own file is not part of its installation
        return str(FOLDER / "resources" / "molecules.xyz")

    @pytest.fixture
    def default_hypers(self):
        hypers = copy.deepcopy(get_default_hypers(self.architecture))
        hypers["training"]["num_workers"] = 0
        return hypers

    @pytest.fixture
    def model_hypers(self, request):
        hypers = reduced_hypers()
        if request.function.__name__ in PRESUME_SHORT_RANGE:
            hypers["long_range"]["enable"] = False
        return hypers

    @pytest.fixture
    def minimal_model_hypers(self):
        hypers = copy.deepcopy(get_default_hypers(self.architecture)["model"])
        hypers.update(
            num_radial=1,
            num_features=1,
            num_spherical_features=1,
            num_species_features=1,
            max_degree=1,
        )
        hypers["long_range"]["max_degree"] = 1
        hypers["charge_equilibration"]["enable"] = True
        return hypers


class TestInput(InputTests, LoremTests): ...


class TestOutput(OutputTests, LoremTests):
    @pytest.fixture
    def n_features(self, model_hypers):
        return model_hypers["num_features"]

    @pytest.fixture
    def n_last_layer_features(self, model_hypers):
        return 2 * model_hypers["num_features"]

    def test_prediction_energy_subset_atoms_long_range(self, model_hypers, dataset_info):
        """With the long-range block the atoms that are not selected still act on the others."""
        torch.manual_seed(0)
        assert model_hypers["long_range"]["enable"]
        model = self.model_cls(model_hypers, dataset_info).to(torch.float64).eval()
        nearby = torch.tensor([[0.0, 0.0, z] for z in (0.0, 1.0, 2.0)], dtype=torch.float64)

        def energies(distance, selected, sample_kind):
            positions = torch.cat([nearby, nearby + torch.tensor([0.0, distance, 0.0])])
            system = System(
                types=torch.tensor([7, 8, 8, 7, 8, 8]),
                positions=positions,
                cell=torch.zeros(3, 3, dtype=torch.float64),
                pbc=torch.zeros(3, dtype=torch.bool),
            )
            get_system_with_neighbor_lists(system, model.requested_neighbor_lists())
            outputs = {"energy": ModelOutput(sample_kind=sample_kind)}
            labels = None
            if selected is not None:
                labels = Labels(["system", "atom"], torch.tensor([[0, i] for i in selected]))
            return model([system], outputs, labels)["energy"].block().values

        every_atom = energies(50.0, None, "atom")
        torch.testing.assert_close(energies(50.0, [0, 2, 4], "atom"), every_atom[[0, 2, 4]])
        first_molecule = energies(50.0, [0, 1, 2], "system")
        torch.testing.assert_close(first_molecule, every_atom[:3].sum(dim=0, keepdim=True))
        # the second molecule acts on the first from everywhere, less with distance
        remote = energies(5e4, [0, 1, 2], "system")
        near, far = ((energies(r, [0, 1, 2], "system") - remote).abs() for r in (50.0, 500.0))
        assert near > 3 * far > 1e-12


class TestAutograd(AutogradTests, LoremTests): ...


class TestTorchscript(TorchscriptTests, LoremTests):
    float_hypers = ["cutoff"]


class SamePrecision:
    @pytest.fixture(autouse=True)
    def same_precision(self, monkeypatch):
        """The suite gives exported models structures of the precision of their parameters."""
        monkeypatch.setattr(Lorem, "exports_double", False)


class TestExported(SamePrecision, ExportedTests, LoremTests): ...


class TestTraining(TrainingTests, LoremTests): ...


class WithCharges(LoremTests):
    """The same with charge equilibration."""

    @pytest.fixture
    def model_hypers(self, request):
        hypers = reduced_hypers()
        enable = request.function.__name__ not in PRESUME_SHORT_RANGE
        hypers["charge_equilibration"]["enable"] = enable
        hypers["long_range"]["enable"] = enable
        return hypers


class TestAutogradWithCharges(AutogradTests, WithCharges): ...


class TestExportedWithCharges(SamePrecision, ExportedTests, WithCharges): ...


class TestOutputWithCharges(OutputTests, WithCharges):
    @pytest.fixture
    def n_features(self, model_hypers):
        return model_hypers["num_features"]

    @pytest.fixture
    def n_last_layer_features(self, model_hypers):
        return 3 * model_hypers["num_features"]


class WithBackbone(LoremTests):
    """The same behind PET, which is of short range itself."""

    @pytest.fixture
    def model_hypers(self, request):
        hypers = reduced_hypers()
        hypers["long_range"]["enable"] = request.function.__name__ not in PRESUME_SHORT_RANGE
        hypers["backbone"] = section("pet")
        return hypers


@pytest.mark.slow
class TestAutogradWithBackbone(AutogradTests, WithBackbone): ...


@pytest.mark.slow
class TestExportedWithBackbone(SamePrecision, ExportedTests, WithBackbone): ...


@pytest.mark.slow
class TestTorchscriptWithBackbone(TorchscriptTests, WithBackbone):
    float_hypers = ["cutoff"]


@pytest.mark.slow
class TestTrainingWithBackbone(TrainingTests, WithBackbone): ...


@pytest.mark.slow
class TestOutputWithBackbone(OutputTests, WithBackbone):
    # PET is invariant to neither rotations nor inversion; by how much is tested in test_backbone.py
    test_output_scalar_invariant = None
    test_output_spherical_equivariant_rotations = None
    test_output_spherical_equivariant_inversion = None

    @pytest.fixture
    def n_features(self, model_hypers):
        return model_hypers["num_features"]

    @pytest.fixture
    def n_last_layer_features(self, model_hypers):
        return 3 * model_hypers["num_features"]


class TestCheckpoints(CheckpointTests, LoremTests):
    @pytest.fixture(autouse=True)
    def folder(self, monkeypatch, tmp_path):
        """The suite looks for ``checkpoints/`` in the current folder, and trains there."""
        (tmp_path / "checkpoints").symlink_to(FOLDER / "checkpoints")
        monkeypatch.chdir(tmp_path)
