"""The benchmarks measure what they say. Times themselves are not tested."""

import argparse
import importlib
import json
import math
import mmap
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MIB = 2**20

pytestmark = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason=f"needs the repository: no folder {BENCHMARKS}"
)


@pytest.fixture
def benchmarks(monkeypatch):
    """Modules of the benchmarks, which are no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("common", "roofline", "plot_speed", "torch_models", "hypers", "torchpme_cells")
    names += ("charge_equilibration", "stages")
    modules = {name: importlib.import_module(name) for name in names}
    yield SimpleNamespace(**modules)
    for name in names:
        del sys.modules[name]


def run(script, *arguments, cwd):
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rocksalt(benchmarks):
    frame = benchmarks.common.rocksalt(64)
    assert frame.pbc.all() and np.allclose(frame.cell.lengths(), 2 * 5.64)
    assert (frame.numbers == 11).sum() == 32
    distances = frame.get_all_distances(mic=True) + 99 * np.eye(64)
    closest = distances.argsort(axis=1)[:, :6]
    assert (frame.numbers[closest] != frame.numbers[:, None]).all()
    assert 2.2 < distances.min() < 2.82
    assert sorted(benchmarks.common.rocksalt(100_000).cell.lengths() / 5.64) == [20, 25, 25]
    with pytest.raises(argparse.ArgumentTypeError, match="100: give multiples of 8"):
        benchmarks.common.number_of_atoms("100")


def test_cluster(benchmarks):
    frame = benchmarks.common.structure(16)
    assert len(frame) == 16 and not frame.pbc.any() and (frame.numbers == 11).sum() == 8
    distances = frame.get_all_distances() + 99 * np.eye(16)
    assert (frame.numbers[distances.argmin(axis=1)] != frame.numbers).all()


def test_warming_up_ends_when_two_calls_agree(benchmarks):
    seconds = [1.0, 1.0, 9.0, 5.0, 1.0, 1.1, 1.2, 1.3, 1.4]
    called = []

    def evaluate(call):
        called.append(call)
        return seconds[call]

    # the first two agree before anything is compiled
    assert benchmarks.common.measure(evaluate, 3) == [1.2, 1.3, 1.4]
    assert called == list(range(9))
    # never settled: six calls at most
    assert benchmarks.common.measure(lambda call: 2.0**call, 1) == [64.0]
    # slow ones may begin after two
    called.clear()
    seconds = [40.0, 39.0, 38.0]
    assert benchmarks.common.measure(evaluate, 1) == [38.0]
    # short ones are repeated, here for half a second
    assert len(benchmarks.common.measure(lambda call: 0.01, 3)) >= 50


WORKER = """
import sys, time
import numpy as np
task = __import__("json").loads(sys.argv[1])
array = np.ones(task["mib"] * 2**17)
time.sleep(task["seconds"])
if task["fail"]:
    raise KeyError("wrong")
print("noise")
print('{"threads": "' + __import__("os").environ["OMP_NUM_THREADS"] + '"}')
"""


@pytest.mark.parametrize(
    "mib, seconds, fail, expected",
    [
        (1, 0, False, {"threads": "2"}),
        (400, 60, False, {"failed": "out of memory"}),
        (1, 60, False, {"failed": "too slow"}),
        (1, 0, True, {"failed": "error: KeyError: 'wrong'"}),
    ],
)
def test_worker(benchmarks, tmp_path, mib, seconds, fail, expected):
    (tmp_path / "worker.py").write_text(WORKER)
    task = {"threads": 2, "mib": mib, "seconds": seconds, "fail": fail}
    script = str(tmp_path / "worker.py")
    timeout = 3 if mib == 1 and seconds else 60
    assert benchmarks.common.run_worker(script, task, timeout, 300 * MIB) == expected


def test_peak_memory(benchmarks):
    before = benchmarks.common.memory("VmRSS")
    # lets the peak start from here, also where earlier tests took more
    Path("/proc/self/clear_refs").write_text("5")
    # not of the heap, which keeps what it had once LAMMPS's plugin is loaded
    np.frombuffer(mmap.mmap(-1, 200 * MIB), dtype=np.uint8)[:] = 1
    peak = benchmarks.common.memory("VmHWM") - before
    assert 190 * MIB < peak < 260 * MIB


def test_counted_operations_and_bytes(benchmarks):
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    counter = benchmarks.roofline.Counter()
    with counter:
        (a @ b).view(-1)[3:].reshape(-1)
    assert counter.operators == 1
    assert counter.flops == 2 * 8 * 16 * 4
    assert counter.touched == 4 * (8 * 16 + 16 * 4 + 8 * 4)
    assert counter.allocated == 4 * 8 * 4

    mesh = torch.ones(3, 4, 6, 5)
    with counter:
        torch.fft.irfftn(torch.fft.rfftn(mesh, dim=(1, 2, 3)), dim=(1, 2, 3), s=(4, 6, 5))
    assert counter.ffts == 6
    assert counter.flops == 2 * 8 * 16 * 4 + 6 * 2.5 * 120 * math.log2(120)


def test_counted_backward_pass(benchmarks):
    """A product of matrices has two in its backward pass."""
    a, b = torch.ones(8, 16, requires_grad=True), torch.ones(16, 4, requires_grad=True)
    counter = benchmarks.roofline.Counter()
    with counter:
        torch.autograd.grad((a @ b).sum(), [a, b])
    assert counter.flops == 3 * 2 * 8 * 16 * 4
    # bound by bytes, then products by their operations
    assert counter.roofline(1e9, 1.0) == counter.touched
    others = sum(size for flops, size in counter.work if flops == 0)
    assert counter.roofline(1e-3, 1.0) == 1e3 * counter.flops + others


def test_tables(benchmarks):
    assert benchmarks.common.digits(0.012345) == "0.0123"
    assert benchmarks.common.digits(1234.5) == "1234"
    table = benchmarks.common.format_table(["a", "bb"], [["ccc", "1"], ["d", "100"]])
    assert table.splitlines() == ["a     bb", "--------", "ccc    1", "d    100"]
    atoms = [16, 1000, 8000, 64000]
    seconds = [5.0, *(1e-4 * n**1.2 for n in atoms[1:])]
    assert abs(benchmarks.common.exponent(atoms, seconds) - 1.2) < 1e-9
    assert benchmarks.common.exponent(atoms[:2], seconds[:2]) is None
    assert benchmarks.common.exponent([1000, 1728], [1.0, 1.1]) is None


def test_every_line_of_the_figure_is_labelled(benchmarks, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(benchmarks.plot_speed, "label_ends", lambda axes, ends: drawn.extend(ends))
    names = [f"lorem-{i}" for i in range(12)]
    rows = {(name, n): {"seconds": 1e-3 * n} for name in names for n in (16, 64)}
    benchmarks.plot_speed.plot(rows, tmp_path / "speed.png")
    assert [(atoms, name) for atoms, _, name, _ in drawn] == [(64, name) for name in names]


@pytest.mark.slow
def test_speed_of_our_model_and_its_page(tmp_path):
    options = ["--atoms", "16", "--models", "lorem", "--repetitions", "1"]
    options += ["--stages", "--roofline", "--json", "speed.json"]
    output = run("speed.py", *options, cwd=tmp_path)
    record = json.loads((tmp_path / "speed.json").read_text())
    (row,) = record["results"]
    assert row["model"] == "lorem" and row["atoms"] == 16 and row["seconds"] > 0
    assert "measured / roofline" in output
    stages = record["stages"]["16"]
    parts = [v for k, v in stages.items() if k not in ("neighbor list", "forward", "backward")]
    # medians of parts do not add up exactly
    assert abs(sum(parts) / stages["forward"] - 1) < 0.3
    # (L + 1)² times s density components, and the matrices of the networks
    assert record["roofline"]["16"]["flops"] > 1e7

    run(
        "training_step.py",
        "--models",
        "lorem",
        "--repetitions",
        "1",
        "--json",
        "training.json",
        cwd=tmp_path,
    )
    run("memory.py", "--models", "lorem", "--atoms", "16", "--json", "memory.json", cwd=tmp_path)
    files = ["speed.json", "training.json", "memory.json"]
    run("plot_speed.py", *files, "--plot", "speed.png", "--page", "speed.rst", cwd=tmp_path)
    page = (tmp_path / "speed.rst").read_text()
    assert ".. image:: speed.png" in page and "Training steps" in page and "kB/atom" in page
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_cells_of_torchpme(benchmarks):
    """Should torch-pme's filter hold in a hexagonal cell one day, ours may go."""
    cells = benchmarks.torchpme_cells
    p3m, phases, pme = cells.errors(cells.CELLS["hexagonal"], cells.MESH_SPACING)
    assert phases < 1e-5 < 1e-4 < pme < 1e-3 < p3m
    assert cells.errors(cells.CELLS["cubic"], cells.MESH_SPACING)[0] < 2e-5
    difference, direct = cells.real_space_errors(5.0)
    assert direct < 1e-5 and difference > 1e-2
    cells.spreading(16, 8)  # compares both ways


def test_iterations_of_charge_equilibration(benchmarks, capsys):
    benchmarks.charge_equilibration.iterations([3], 1.0)
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert row[0] == "216"
    kerker, diagonal = ([int(n) for n in column.split("/")] for column in row[1:3])
    assert kerker == sorted(kerker) and 2 < kerker[0] < diagonal[0]
    assert kerker[1] < 6 < diagonal[1]


def test_stages_are_modules_of_the_model(benchmarks):
    """A stage that has another name would be counted as the rest."""
    models = benchmarks.torch_models
    changes = {
        "num_message_passing": 1,
        "long_range": {"exponents": [1, 6]},
        "charge_equilibration": {"enable": True},
    }
    models.MODELS["changed"] = models.Model("lorem", changes)
    model = models.new_model("changed", [11, 17], models._energy())
    modules = dict(model.named_modules())
    names = [name for stage in benchmarks.stages.STAGES.values() for name in stage]
    assert [name for name in names if name not in modules] == []


def test_variations_of_hypers(benchmarks):
    """Every line of the table is a model with other hyperparameters than the defaults."""
    models, variations = benchmarks.torch_models, benchmarks.hypers.VARIATIONS
    found = set()
    for changes in variations.values():
        models.MODELS["changed"] = models.Model("lorem", changes)
        model = models.new_model("changed", [11, 17], models._energy())
        found.add(str(model.hypers))
    assert len(found) == len(variations)


@pytest.mark.slow
def test_gpu_in_one_command(tmp_path):
    """Here on the CPU. An item that is there is not measured again."""
    done = tmp_path / "items" / "coulomb-torch-pme-64.json"
    done.parent.mkdir()
    item = {"name": done.stem, "kind": "coulomb", "sum": "torch-pme", "atoms": 64}
    done.write_text(json.dumps({**item, "failed": "too slow"}))
    output = run("gpu.py", "--device", "cpu", "--quick", "--output", ".", cwd=tmp_path)
    record = json.loads((tmp_path / "gpu.json").read_text())
    results = {result["kind"]: result for result in record["results"] if "failed" not in result}
    assert set(results) == {"agreement", "speed", "launches", "training", "coulomb"}
    assert len(record["results"]) == 6
    agreement = results["agreement"]
    # of the CPU with itself
    assert set(agreement["double"].values()) == {0.0}
    assert agreement["single"] == agreement["single_cpu"]
    assert 0.0 < max(agreement["single"].values()) < 1e-4
    assert 0.0 < max(agreement["differences"].values()) < 1e-8
    for kind in ("launches", "training", "coulomb"):
        assert results[kind]["operators"] > 100
    assert "too slow" in output
    page = (tmp_path / "gpu.rst").read_text()
    assert "Training steps" in page and ".. image:: gpu.png" in page
    assert (tmp_path / "gpu.png").stat().st_size > 1000


@pytest.mark.slow
def test_cost_of_a_backbone(tmp_path):
    """Its sum is that of the medians that it prints."""
    line = run("backbone_cost.py", "--repeat", "1", "--rounds", "1", cwd=tmp_path)
    assert line.startswith("8 atoms: PET ")
    pet, blocks, both = (float(x) for x in re.findall(r"([\d.]+) ms", line))
    excess = float(re.search(r"sum ([+-][\d.]+)%", line).group(1))
    assert 100 * (both / (pet + blocks) - 1) == pytest.approx(excess, abs=1.0)
