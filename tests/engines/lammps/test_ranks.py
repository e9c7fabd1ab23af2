"""Long-range models on several MPI processes: the numbers of one, and errors that end all."""

import time
from typing import Dict, List, Optional  # noqa: UP035

import ase
import numpy as np
import pytest
import torch
from helpers import models
from helpers.backbones import section
from helpers.lammps import record
from helpers.once import common_folder, locked
from metatensor.torch import Labels, TensorMap
from metatomic.torch import AtomisticModel, ModelOutput, System, systems_to_torch
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)

from metatrain_lorem.staged_charges import Part

EV_PER_A3 = 1.6021765e6
"""In bar, LAMMPS's own number in units metal."""

QEQ = {"charge_equilibration": {"enable": True}, "conditional": True}
COULOMB_PART = {"charge_equilibration": {"enable": True, "energy": "celli"}, "conditional": True}
MODELS = {
    "long range": {},
    "total charge": {"conditional": True},
    "zbl": {"zbl": True},
    "bohr": {"length_unit": "bohr"},
    "both": QEQ,
    "celli": COULOMB_PART,
    "charges": QEQ | {"long_range": {"enable": False}},
    "widths": {
        "charge_equilibration": {
            "enable": True,
            "learn_widths": True,
            "hardness": "features",
        },
        "conditional": True,
    },
    "last": {
        "charge_equilibration": {"enable": True, "after_long_range": True},
        "conditional": True,
    },
    "single precision": QEQ,
    "messages": {"num_message_passing": 1},
    "partial charges": {"long_range": {"energy": "charges"}},
    "dispersion": {"long_range": {"exponents": [1, 6]}},
    "backbone": {"backbone": section("pet")},
    "without stages": {},
}
RUN = "fix integrate all nve\ntimestep 0.0002\nrun 2\n"
PRESSURE = """
velocity all create 300 1 loop all
compute pressure all pressure NULL virial
compute energies all pe/atom
"""
PRESSURES = [f"c_pressure[{i}]" for i in (1, 2, 3, 4, 5, 6)]
CHARGES = """
fix charges all pair 1 metatomic charge 0
compute sum all reduce sum f_charges
"""


def liquid(kind: str = "cubic") -> ase.Atoms:
    """48 atoms in a box, tilted if triclinic, with a vacuum of 14 Å if a slab."""
    sites = np.array(list(np.ndindex(4, 4, 3))) * 1.9
    frame = ase.Atoms("CHON" * 12, positions=sites, cell=[7.6, 7.6, 5.7], pbc=True)
    frame.rattle(0.15, seed=1)
    if kind == "triclinic":
        tilt = [[0, 0, 0], [1.1, 0, 0], [-0.9, 0.8, 0]]
        frame.set_cell(frame.cell.array + tilt, scale_atoms=True)
    if kind == "slab":
        frame.pbc = [True, True, False]
        frame.cell[2, 2] += 14.0
        frame.positions[:, 2] += 4.0
    return frame


def new_model(name: str):
    """A small model that takes the mesh for few atoms too, as several processes do."""
    options = {key: dict(value) for key, value in MODELS[name].items() if isinstance(value, dict)}
    for block in ("long_range", "charge_equilibration"):
        options[block] = {"accuracy": 1e-4} | options.get(block, {})
    model = models.new_model(**{**MODELS[name], **options})
    blocks = [model.charge_equilibration]
    blocks.append(None if model.long_range is None else model.long_range.coulomb)
    for block in blocks:
        if block is not None:
            block.settings = block.settings._replace(mesh_threshold=0, few_atoms=0)
    return model.to(torch.float32) if name == "single precision" else model


class Wrapper(torch.nn.Module):
    """A model whose stages the file does not have, as with LLPR."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels] = None,  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        return self.model(systems, outputs, selected_atoms)


@pytest.fixture(scope="session")
def rank_model(tmp_path_factory):
    """Exported models by name."""
    folder = common_folder(tmp_path_factory, "rank-models")

    def rank_model(name):
        path = folder / f"{name.replace(' ', '-')}.pt"
        with locked(folder):
            if not path.exists():
                exported = new_model(name).export()
                if name == "without stages":
                    wrapped = Wrapper(exported.module).eval()
                    capabilities = exported.capabilities()
                    exported = AtomisticModel(wrapped, exported.metadata(), capabilities)
                exported.save(path)
        return path

    return rank_model


def commands(name: str, lines: str = RUN) -> str:
    """What follows the structure in a script: a run that writes all there is."""
    charged = MODELS[name].get("charge_equilibration") is not None
    script = PRESSURE + (CHARGES if charged else "")
    thermo, dump = [*PRESSURES, "c_sum"], "c_energies f_charges"
    if not charged:
        thermo, dump = PRESSURES, "c_energies"
    return script + record(" ".join(thermo), dump) + lines


@pytest.fixture(scope="session")
def simulate(lammps, rank_model, tmp_path_factory):
    """Thermodynamic output, frames and columns of a run."""

    def simulate(name, frame, processes, lines=RUN, before="", after=""):
        folder = tmp_path_factory.mktemp("ranks")
        keywords = "total_charge 1" if MODELS[name].get("conditional") else ""
        script = lammps.header(folder, frame, rank_model(name), keywords, before=before)
        output = lammps.run(folder, script + after + commands(name, lines), processes)
        frames, columns = lammps.read_dump(folder / "out.dump")
        return lammps.read_thermo(output), frames, np.array(columns)

    return simulate


def compare(one, several, tolerance: float = 1e-10) -> None:
    """Energies, virial, positions, forces, energies and charges of atoms."""
    thermo, frames, columns = one
    assert abs(columns[0, :, :3]).max() > 0.1
    largest = max(abs(thermo[key]).max() for key in PRESSURES)
    for key, reference in thermo.items():
        limit = tolerance * (largest if key in PRESSURES else max(1.0, abs(reference).max()))
        np.testing.assert_allclose(several[0][key], reference, rtol=0, atol=limit)
    for frame, frame_of_several in zip(frames, several[1], strict=True):
        np.testing.assert_allclose(
            frame_of_several.positions, frame.positions, rtol=0, atol=tolerance
        )
    limit = tolerance * max(1.0, abs(columns).max())
    np.testing.assert_allclose(several[2], columns, rtol=0, atol=limit)


def evaluated(name: str, frame: ase.Atoms) -> dict[str, np.ndarray]:
    """The same by the model in Python, of one process."""
    model = new_model(name)
    strain = torch.eye(3, dtype=torch.float64, requires_grad=True)
    given = systems_to_torch([frame], dtype=torch.float64)[0]
    positions = given.positions.requires_grad_(True)
    system = System(given.types, positions @ strain, given.cell @ strain, given.pbc)
    system = get_system_with_neighbor_lists(system, get_requested_neighbor_lists(model))
    models.with_charge(system, 1.0)
    outputs = {n: ModelOutput(sample_kind="atom") for n in ("energy", "charge")}
    results = model([system], outputs)
    energies, charges = (results[name].block().values for name in outputs)
    forces, virial = torch.autograd.grad(-energies.sum(), [positions, strain])
    columns = torch.cat([forces, energies, charges], dim=1).detach().numpy()
    # the mesh is not quite isotropic, and LAMMPS takes the symmetric part
    pressure = 0.5 * (virial + virial.T).numpy() * EV_PER_A3 / frame.get_volume()
    return {
        "PotEng": energies.sum().item(),
        "columns": columns,
        "pressure": [pressure[i] for i in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]],
    }


def test_two_as_in_python(simulate):
    """Charge equilibration and long range of a charged, triclinic cell: energy, forces, virial,
    energies and charges of atoms, and their sum by LAMMPS."""
    thermo, frames, columns = simulate("both", liquid("triclinic"), 2, "run 0\n")
    expected = evaluated("both", frames[0])
    assert abs(columns[0, :, 4]).max() > 0.1
    np.testing.assert_allclose(thermo["PotEng"][0], expected["PotEng"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(columns[0], expected["columns"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(thermo["c_sum"], 1.0, rtol=0, atol=1e-12)
    pressure = [thermo[key][0] for key in PRESSURES]
    scale = abs(np.array(pressure)).max()
    np.testing.assert_allclose(pressure, expected["pressure"], rtol=0, atol=1e-9 * scale)


def test_an_error_of_one_ends_all(lammps, rank_model, tmp_path):
    """Two atoms on one spot, both of the same process, while the other waits for it."""
    frame = liquid()
    frame.positions[1] = frame.positions[0]
    script = lammps.header(tmp_path, frame, rank_model("both"), "total_charge 1") + "run 0"
    begin = time.monotonic()
    output = lammps.failure(tmp_path, script, processes=2)
    assert "are on one spot, or their coordinates are not numbers" in output
    assert time.monotonic() - begin < 200


@pytest.mark.parametrize(
    "name, message",
    [
        ("messages", "models with message passing and long range run on one process"),
        ("partial charges", r"partial charges \(long_range.energy: charges\) run on one process"),
        ("dispersion", r"dispersion \(long_range.exponents\) run on one process"),
        ("backbone", "models with a backbone and long range run on one process"),
    ],
)
def test_models_without_stages(name, message):
    """What the plugin asks a model for before it starts."""
    with pytest.raises(ValueError, match=message):
        new_model(name).stage_support()


def test_plugin_that_does_not_know_the_order():
    """One that was built before models could equilibrate charges last."""
    part = Part(graph=None, stages=[], spherical=None, field=None, charges=None)
    with pytest.raises(ValueError, match="build it again"):
        new_model("last").stage_operator(None, part, None)


CASES = [
    ("long range", "cubic", 4, {}),
    ("long range", "triclinic", 3, {}),
    ("long range", "slab", 2, {"before": "processors 1 1 2"}),
    ("total charge", "cubic", 2, {}),
    ("zbl", "cubic", 2, {}),
    ("bohr", "triclinic", 2, {}),
    ("both", "cubic", 3, {"before": "processors 1 1 3\ncomm_modify cutoff 7.5"}),
    ("both", "triclinic", 4, {}),
    # 19.7 Å high, of which the atoms take 6
    ("both", "slab", 4, {"before": "processors 1 1 4"}),
    ("both", "slab", 2, {"after": "comm_style tiled\nbalance 1.0 rcb\n"}),
    ("celli", "cubic", 2, {}),
    ("charges", "triclinic", 2, {}),
    ("widths", "cubic", 2, {}),
    ("last", "triclinic", 3, {}),
    ("last", "slab", 2, {}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, kind, processes, options", CASES)
def test_several_as_one(simulate, name, kind, processes, options):
    """Two steps; an empty process, more neighbours than needed, and a load that is balanced among
    the cases."""
    one = simulate(name, liquid(kind), 1)
    compare(one, simulate(name, liquid(kind), processes, **options))


@pytest.mark.slow
def test_single_precision(simulate):
    """As far apart as rounding takes them."""
    one = simulate("single precision", liquid(), 1)
    compare(one, simulate("single precision", liquid(), 2), 1e-5)


@pytest.mark.slow
def test_constant_energy(simulate):
    """A hundred steps together."""
    run = "fix integrate all nve\ntimestep 0.00002\nrun 100\n"
    one = simulate("both", liquid(), 1, run)
    assert abs(one[1][-1].positions - one[1][0].positions).max() > 1e-3
    compare(one, simulate("both", liquid(), 2, run), 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind, box", [("cubic", "iso"), ("triclinic", "tri")])
def test_constant_pressure(simulate, kind, box):
    """The box follows the virial of all processes."""
    run = f"fix integrate all npt temp 300 300 0.05 {box} 0 0 0.5\ntimestep 0.0002\nrun 5\n"
    one = simulate("both", liquid(kind), 1, run)
    assert abs(one[1][-1].cell.array - one[1][0].cell.array).max() > 1e-5
    compare(one, simulate("both", liquid(kind), 2, run))


@pytest.mark.slow
def test_atoms_change_processes(simulate):
    """Fast atoms, and domains that follow them."""
    run = """
velocity all create 20000 5 loop all
fix balance all balance 5 1.0 shift xyz 5 1.05
neigh_modify every 1 delay 0 check yes
fix integrate all nve
timestep 0.0005
run 15
"""
    one = simulate("both", liquid(), 1, run)
    begin, end = (one[1][i].positions[:, 0] < 3.8 for i in (0, -1))
    assert 0 < (begin != end).sum() < 48
    compare(one, simulate("both", liquid(), 2, run), 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both", "celli"])
def test_finite_differences(simulate, name):
    """Forces and virial on two processes are the derivatives of LAMMPS's own energy there."""
    h, lines, steps = 1e-4, "run 0\n", (-2, 2, -1, 1)
    moves = []
    for atom, axis in [(1, "x"), (20, "y"), (41, "z")]:
        lines += f"group one{atom} id {atom}\n"
        moves.append((f"displace_atoms one{atom} move", axis, "atom"))
    moves.append(("box", "z", "box"))
    height = 5.7
    for command, axis, kind in moves:
        for previous, step in zip((0, *steps), (*steps, 0), strict=True):
            if kind == "box":
                z = height * (1 + step * h)
                lines += f"change_box all z final 0 {z:.17g} remap units box\nrun 0\n"
            else:
                shift = [f"{(step - previous) * h:.17g}" if c == axis else "0" for c in "xyz"]
                lines += f"{command} {' '.join(shift)} units box\nrun 0\n"
    thermo, _, columns = simulate(name, liquid(), 2, lines)
    energies = thermo["PotEng"][1:].reshape(4, 5)
    low2, high2, low, high, _ = energies.T
    numerical = (low2 - 8 * low + 8 * high - high2) / (12 * h)
    forces = [columns[0, atom - 1, "xyz".index(axis)] for atom, axis in [(1, "x"), (20, "y")]]
    forces.append(columns[0, 40, 2])
    scale = np.sqrt(np.mean(columns[0, :, :3] ** 2))
    np.testing.assert_allclose(-numerical[:3], forces, rtol=0, atol=1e-6 * scale)
    virial = thermo["c_pressure[3]"][0] * liquid().get_volume() / EV_PER_A3
    np.testing.assert_allclose(-numerical[3], virial, rtol=1e-6)


@pytest.mark.slow
def test_not_a_number_ends_all(lammps, rank_model, tmp_path):
    """An atom of one process is lost in a run, before LAMMPS itself looks at it."""
    script = lammps.header(tmp_path, liquid(), rank_model("both"), "total_charge 1")
    script += """
neigh_modify every 1000 delay 1000 check no
variable lost atom "ternary(id == 5, 1e308 * 10 - 1e308 * 10, vx)"
run 0
set group all vx v_lost
fix integrate all nve
run 2
"""
    output = lammps.failure(tmp_path, script, processes=2)
    assert "ERROR" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kind, options, message",
    [
        ("without stages", "cubic", {}, "has them after another mtt export"),
        ("messages", "cubic", {}, "models with message passing and long range run on one process"),
        (
            "partial charges",
            "cubic",
            {},
            "partial charges (long_range.energy: charges) run on one process",
        ),
        ("long range", "isolated", {}, "the system is not periodic"),
        ("long range", "cubic", {"before": "newton off"}, "needs newton on"),
        (
            "both",
            "cubic",
            {"keywords": "total_charge 1 electric_field 0 0 0.1"},
            "an electric_field needs all atoms on one process",
        ),
    ],
)
def test_refused(lammps, rank_model, tmp_path, name, kind, options, message):
    """What one process can do only."""
    frame = liquid()
    if kind == "isolated":
        frame.pbc = False
        frame.positions += 2.0
        frame.cell += np.diag([4.0, 4.0, 4.0])
    script = lammps.header(tmp_path, frame, rank_model(name), **options) + "run 0"
    assert message in lammps.failure(tmp_path, script, processes=2)
