"""An exported file needs nothing but metatomic: no Python of ours, no extension."""

import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
import yaml
from helpers import away
from metatomic.torch import ModelOutput, is_atomistic_model

FOLDER = Path(__file__).parent
NAMESPACES = {"aten", "prim", "metatensor", "metatomic"}
MODEL_HYPERS = {
    "cutoff": 4.0,
    "num_radial": 8,
    "num_features": 16,
    "num_spherical_features": 4,
    "max_degree": 3,
    "num_message_passing": 1,
}

# Forces and stress of a file against finite differences of its energy, without our packages
EVALUATE = """
import sys

from sitecustomize import FORBIDDEN

for name in FORBIDDEN:
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(name + " can be imported")

import ase
import ase.io
import numpy as np
from metatomic_ase import MetatomicCalculator


def derivative(energy, h):
    return (energy(-2 * h) - 8 * energy(-h) + 8 * energy(h) - energy(2 * h)) / (12 * h)

rng = np.random.default_rng(0)
for frame in ase.io.read(sys.argv[2], ":"):
    frame.calc = MetatomicCalculator(sys.argv[1], check_consistency=True)
    forces = frame.get_forces()
    start, cell = frame.positions.copy(), frame.cell.array.copy()
    for _ in range(3):
        direction = rng.normal(size=start.shape)

        def displaced(size):
            frame.positions = start + size * direction
            return frame.get_potential_energy()

        # forces jump where a scalar density changes sign (its norm is its absolute value);
        # larger steps may reach across
        numerical = derivative(displaced, 2e-5)
        print("force", numerical, -(forces * direction).sum())
    frame.positions = start
    if frame.pbc.all():
        stress = frame.get_stress(voigt=False) * frame.get_volume()
        for _ in range(2):
            direction = rng.normal(size=(3, 3))

            def strained(size):
                frame.set_cell(cell @ (np.eye(3) + size * direction), scale_atoms=True)
                return frame.get_potential_energy()

            # larger strains change the set of k-vectors
            numerical = derivative(strained, 1e-5)
            print("stress", numerical, (stress * direction).sum())
"""


def write_options(folder: Path) -> None:
    frames = ase.io.read(FOLDER / "resources" / "molecules.xyz", ":12")
    ase.io.write(folder / "molecules.xyz", frames)
    options = {
        "base_precision": 64,
        "seed": 0,
        "architecture": {
            "name": "lorem",
            "model": MODEL_HYPERS,
            "training": {"num_epochs": 1, "batch_size": 4, "num_workers": 0},
        },
        "training_set": {
            "systems": {"read_from": "molecules.xyz", "length_unit": "angstrom"},
            "targets": {"energy": {"key": "U0", "unit": "eV", "forces": False}},
        },
        "validation_set": 0.25,
        "test_set": 0.0,
    }
    (folder / "options.yaml").write_text(yaml.safe_dump(options))


def run(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of ``mtt train`` and ``mtt export``, each from a process of its own."""
    folder = tmp_path_factory.mktemp("export")
    write_options(folder)
    run("-m", "metatrain", "train", "options.yaml", "-o", "trained.pt", cwd=folder)
    run("-m", "metatrain", "export", "trained.ckpt", "-o", "exported.pt", cwd=folder)
    return folder


def extra_files(path: Path) -> dict[str, str]:
    """What metatomic stores in the file beside the model."""
    with zipfile.ZipFile(path) as file:
        names = [name for name in file.namelist() if "/extra/" in name]
        return {name.split("/extra/")[1]: file.read(name).decode() for name in names}


@pytest.mark.parametrize("name", ["trained.pt", "exported.pt"])
def test_no_extension_recorded(folder, name):
    extra = extra_files(folder / name)
    assert json.loads(extra["extensions"]) == []
    assert json.loads(extra["extensions-deps"]) == []


def graph_operators(module: torch.jit.ScriptModule) -> set[str]:
    """Names of the operators of all methods of a module, functions that they call included."""
    operators: set[str] = set()

    def collect(block):
        for node in block.nodes():
            operators.add(node.kind())
            for inner in node.blocks():
                collect(inner)
            if node.hasAttribute("Subgraph"):
                collect(node.g("Subgraph"))

    for submodule in module.modules():
        for name in submodule._c._method_names():
            graph = submodule._c._get_method(name).graph.copy()
            torch._C._jit_pass_inline(graph)
            collect(graph)
    return operators


@pytest.mark.parametrize("name", ["trained.pt", "exported.pt"])
def test_operators(folder, name):
    """Nothing whose derivative lives in Python, as sphericart's operators."""
    assert is_atomistic_model(torch.jit.load(folder / name))
    module = torch.jit.load(folder / name)
    operators = graph_operators(module)
    assert {"aten::einsum", "aten::index_add", "prim::If"} <= operators
    assert {operator.split("::")[0] for operator in operators} <= NAMESPACES


def test_operators_of_stages(lorem, tmp_path):
    """So in the methods that engines with several processes call."""
    lorem.new_model(charge_equilibration={"enable": True}).export().save(tmp_path / "model.pt")
    module = torch.jit.load(tmp_path / "model.pt")
    stages = [n for n in module.module._c._method_names() if n.startswith("stage_")]
    assert {"stage_local", "stage_product", "stage_filter", "stage_outputs"} <= set(stages)
    operators = graph_operators(module)
    assert {"aten::fft_rfftn", "aten::fft_fftn"} <= operators
    assert {operator.split("::")[0] for operator in operators} <= NAMESPACES


def test_without_our_packages(folder, lorem):
    """Forces are the derivatives of the energy where only metatomic is installed."""
    frames = list(lorem.frames.values())
    ase.io.write(folder / "frames.xyz", frames)
    (folder / "evaluate.py").write_text(EVALUATE)
    arguments = ["evaluate.py", "exported.pt", "frames.xyz"]
    lines = run(*arguments, cwd=folder, env=away.environment()).splitlines()
    pairs = {"force": [], "stress": []}
    for line in lines:
        kind, numerical, analytic = line.split()
        pairs[kind].append([float(numerical), float(analytic)])
    assert [len(rows) for rows in pairs.values()] == [9, 2]
    for kind, rows in pairs.items():
        numerical, analytic = np.array(rows).T
        assert np.abs(analytic).min() > 1e-4
        error = np.abs(numerical - analytic).max() / np.sqrt(np.mean(analytic**2))
        print(f"{kind}: largest error relative to the rms {error:.1e}")
        assert error < 1e-6


def test_operators_of_sphericart_would_be_found():
    """``graph_operators`` sees operators in functions of submodules."""
    sphericart = pytest.importorskip("sphericart.torch")

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.harmonics = sphericart.SphericalHarmonics(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.harmonics(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch.nn.Sequential(Inner()))
    namespaces = {operator.split("::")[0] for operator in graph_operators(scripted)}
    assert not namespaces <= NAMESPACES


def test_export_leaves_the_model_alone(lorem):
    """Tables folded for the exported file must not stay in a model that is trained further."""
    model = lorem.new_model()
    positions = [[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.2, 1.1, 0.3], [1.2, 1.3, 1.1]]
    frames = lorem.systems(model, [ase.Atoms("OHHN", positions)])
    outputs = {"energy": ModelOutput(sample_kind="system")}
    before = model(frames, outputs)["energy"].block().values
    model.export()
    assert torch.equal(model(frames, outputs)["energy"].block().values, before)
    with torch.no_grad():
        model.short_range.density_product.product.weight.mul_(1.5)
    after = model(frames, outputs)["energy"].block().values
    assert (after - before).abs() > 1e-3
