"""metatrain and Python with the start-up hook in place, each time in a fresh process.

Environments are made cheaply: a bare virtual environment in which only this package is installed,
and, where metatrain is needed, a folder of links to the packages of the running environment.
"""

import os
import pickle
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import ase.io
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

REPOSITORY = Path(__file__).resolve().parents[1]
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
OWN_FILES = ("metatrain_lorem", "_metatrain_lorem", "_editable_impl_metatrain_lorem")

REGISTERED = """
import sys
assert not {"torch", "metatrain", "metatrain_lorem"} & set(sys.modules)
assert sum(f.__name__ == "LoremFinder" for f in sys.meta_path if isinstance(f, type)) == 1

from importlib import import_module
from metatrain.utils import architectures, io
assert architectures.find_all_architectures().count("lorem") == 1
assert io.find_all_architectures().count("lorem") == 1
assert architectures.get_default_hypers("lorem")["name"] == "lorem"

for name in ["", ".documentation", ".model", ".trainer", ".nn", ".nn.mlp"]:
    assert import_module("metatrain.lorem" + name) is import_module("metatrain_lorem" + name)
architecture = architectures.import_architecture("lorem")
assert architecture.__model__.__module__ == "metatrain_lorem.model"
print(architecture.__file__)
"""


class Environment:
    """A virtual environment without pip; pip of the running environment works on it."""

    def __init__(self, folder):
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site_packages = next(folder.glob("lib/python*/site-packages"))

    def add(self, *lines):
        """Add lines (folders, or code to execute at start-up) to a ``.pth`` file."""
        with (self.site_packages / "test.pth").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def pip(self, *arguments):
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def run(self, *arguments, **environment):
        return run(self.python, *arguments, cwd=self.site_packages.parent, **environment)


def run(*command, cwd, **environment):
    """Run a command without the ``PYTHONPATH`` of the caller; it must succeed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    result = subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def link_packages(folder, *without):
    """Links to the packages of the running environment, without this one and others named."""
    folder.mkdir()
    for entry in SITE_PACKAGES.iterdir():
        if not entry.name.startswith(OWN_FILES + without) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


def write_package(folder, **modules):
    """A package ``metatrain`` of a few lines; keys are paths with ``__`` for the slash."""
    for path, source in {"": "__version__ = '2031.7'", **modules}.items():
        file = Path(folder, "metatrain", *path.split("__"), "__init__.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return str(folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, REPOSITORY], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory, wheel):
    """An environment with this package and nothing else: no metatrain, no torch."""
    environment = Environment(tmp_path_factory.mktemp("bare") / "venv")
    environment.pip("install", "--no-deps", wheel)
    return environment


def test_wheel_has_the_hook_at_its_top(wheel):
    import zipfile

    top = {name for name in zipfile.ZipFile(wheel).namelist() if "/" not in name}
    assert top == {"metatrain_lorem.pth", "_metatrain_lorem_registration.py"}


def test_version():
    import metatrain_lorem

    assert metadata.version("metatrain-lorem") == metatrain_lorem.__version__


# --- Python starts as if nothing had been installed


@pytest.mark.parametrize("metatrain", ["missing", "broken", "a script", "a folder of data"])
def test_silent_start(bare, tmp_path, metatrain):
    if metatrain == "broken":
        write_package(tmp_path, **{"": "raise RuntimeError('broken')"})
    elif metatrain == "a script":
        (tmp_path / "metatrain.py").write_text("imported = True")
    elif metatrain == "a folder of data":
        (tmp_path / "metatrain").mkdir()
    heavy = {"torch", "metatrain", "metatrain_lorem", "importlib", "pathlib"}
    code = f"import sys; print({heavy} & set(sys.modules))"
    result = bare.run("-W", "error", "-c", code, PYTHONPATH=str(tmp_path))
    assert result.stdout == "set()\n"
    assert result.stderr == ""

    # and an import of metatrain ends as it would without us
    expected = {"missing": "ModuleNotFoundError", "broken": "RuntimeError('broken')"}
    code = "try: import metatrain\nexcept Exception as error: print(repr(error))"
    result = bare.run("-W", "error", "-c", code, PYTHONPATH=str(tmp_path))
    assert result.stdout.startswith(expected.get(metatrain, ""))
    assert bool(result.stdout) == (metatrain in expected)
    assert result.stderr == ""


def test_start_takes_less_than_a_millisecond(bare):
    times = []
    for _ in range(5):
        lines = bare.run("-X", "importtime", "-c", "pass").stderr.splitlines()
        (line,) = [line for line in lines if "_metatrain_lorem_registration" in line]
        times.append(int(re.findall(r"\d+", line)[1]))  # cumulative, in microseconds
    assert min(times) < 1000


# --- every way to install


@pytest.mark.parametrize("editable", [False, True], ids=["regular", "editable"])
def test_install_and_uninstall(tmp_path, wheel, editable):
    environment = Environment(tmp_path / "venv")
    environment.add(link_packages(tmp_path / "packages"))
    before = set(environment.site_packages.rglob("*"))
    source = ["-e", REPOSITORY] if editable else [wheel]
    environment.pip("install", "--no-deps", "--no-build-isolation", *source)

    result = environment.run("-c", REGISTERED)
    expected = REPOSITORY / "src" if editable else environment.site_packages
    assert Path(result.stdout.strip()).parents[1] == expected
    assert result.stderr == ""

    environment.pip("uninstall", "-y", "metatrain-lorem")
    assert set(environment.site_packages.rglob("*")) == before
    environment.run("-c", "import sys; assert 'LoremFinder' not in str(sys.meta_path)")


@pytest.mark.slow
@pytest.mark.parametrize("style", ["path", "finder"])
def test_editable_metatrain(tmp_path, wheel, style):
    """Editable installs put a path on ``sys.path``, or a finder of their own on ``meta_path``."""
    checkout = tmp_path / "checkout"
    shutil.copytree(SITE_PACKAGES / "metatrain", checkout / "src" / "metatrain")
    (checkout / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"
        f"[project]\nname = 'metatrain'\nversion = '{metadata.version('metatrain')}'\n"
        "[tool.hatch.build.targets.wheel]\npackages = ['src/metatrain']\n"
        f"dev-mode-exact = {str(style == 'finder').lower()}\n"
    )
    environment = Environment(tmp_path / "venv")
    packages = link_packages(tmp_path / "packages", "metatrain")
    environment.add(packages)
    # the finder is installed by a .pth file, which may be read before the one with `packages`
    (environment.site_packages / "editables").symlink_to(packages / "editables")
    environment.pip("install", "--no-deps", wheel)
    environment.pip("install", "--no-deps", "--no-build-isolation", "-e", checkout)
    code = "import metatrain; print(metatrain.__file__)"
    assert environment.run("-c", code).stdout.startswith(str(checkout))
    environment.run("-c", REGISTERED)


@pytest.mark.slow
@pytest.mark.parametrize("also_in_venv", [False, True])
def test_system_site_packages(tmp_path, wheel, also_in_venv):
    """This package in the system's Python, seen from (and installed once more in) a venv."""
    system = Environment(tmp_path / "system")
    system.add(link_packages(tmp_path / "packages"))
    system.pip("install", "--no-deps", wheel)
    environment = Environment(tmp_path / "venv")
    # what `python -m venv --system-site-packages` makes Python do with the system's folder
    environment.add(f"import site; site.addsitedir({str(system.site_packages)!r})")
    if also_in_venv:
        environment.pip("install", "--no-deps", "--ignore-installed", wheel)
    result = environment.run("-c", REGISTERED)
    expected = environment if also_in_venv else system
    assert result.stdout.startswith(str(expected.site_packages))


# --- another package that hooks metatrain in the same way


# as ours was at first: its finder asks all others, and expects no such finder among them
NAIVE = """
import sys
from functools import wraps
from importlib.machinery import ModuleSpec

class Loader:
    def __init__(self, loader): self.loader = loader
    def create_module(self, spec): return self.loader.create_module(spec)
    def exec_module(self, module):
        self.loader.exec_module(module)
        original = module.find_all_architectures
        module.find_all_architectures = wraps(original)(lambda: [*original(), "dummy"])

class Alias:
    def create_module(self, spec):
        import metatrain_dummy
        return metatrain_dummy
    def exec_module(self, module): pass

class DummyFinder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "metatrain.dummy":
            return ModuleSpec(name, Alias())
        if name != "metatrain.utils.architectures":
            return None
        for finder in sys.meta_path:
            if finder is not DummyFinder and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path)
                if spec is not None:
                    spec.loader = Loader(spec.loader)
                    return spec

sys.meta_path.insert(0, DummyFinder)
"""

SIDE_BY_SIDE = """
import metatrain.dummy, metatrain_dummy
assert metatrain.dummy.name == metatrain_dummy.name == "dummy"
for find_all in (architectures.find_all_architectures, io.find_all_architectures):
    assert find_all().count("dummy") == 1
assert architectures.get_architecture_path("lorem").name == "metatrain_lorem"
architectures.get_default_hypers("pet")
"""

# who writes, in the second of two processes
RUNS = """
import os
import sys
from pathlib import Path
os.environ.update(TORCHELASTIC_RUN_ID="1", RANK="1")
from metatrain.utils.distributed.logging import is_main_process
from metatrain_dummy.integration import _architecture_on_command_line as theirs
from metatrain_lorem.integration import _architecture_on_command_line as ours
for name in ("dummy", "lorem", "pet"):
    sys.argv = ["mtt", "train", f"{name}.yaml"]
    Path(sys.argv[2]).write_text(f"architecture: {{name: {name}}}")
    theirs.cache_clear()
    ours.cache_clear()
    assert is_main_process() == (name == "pet")
"""


@pytest.mark.parametrize("recipe", ["ours", "naive"])
@pytest.mark.parametrize("order", ["first", "second"])
def test_second_plugin_beside_ours(tmp_path, wheel, recipe, order):
    """Whichever of the two is imported first when Python starts."""

    def renamed(path):
        source = (REPOSITORY / "src" / path).read_text()
        return source.replace("lorem", "dummy").replace("Lorem", "Dummy")

    registration = renamed("_metatrain_lorem_registration.py") if recipe == "ours" else NAIVE
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", wheel)
    environment.add(link_packages(tmp_path / "packages"))
    site_packages = environment.site_packages
    (site_packages / "metatrain_dummy").mkdir()
    (site_packages / "metatrain_dummy" / "__init__.py").write_text("name = 'dummy'")
    for name in ("integration.py", "integration_eval.py", "inspection.py"):
        path = site_packages / "metatrain_dummy" / name
        path.write_text(renamed(f"metatrain_lorem/{name}"))
    (site_packages / "_metatrain_dummy_registration.py").write_text(registration)
    # read in the order of the alphabet
    start = site_packages / ("a.pth" if order == "first" else "z.pth")
    start.write_text("import _metatrain_dummy_registration\n")

    code = "import sys; print([f.__name__ for f in sys.meta_path if 'registr' in f.__module__])"
    expected = (
        ["LoremFinder", "DummyFinder"] if order == "first" else ["DummyFinder", "LoremFinder"]
    )
    assert environment.run("-c", code).stdout == f"{expected}\n"
    runs = RUNS if recipe == "ours" else ""
    environment.run("-W", "error::UserWarning:_metatrain", "-c", REGISTERED + SIDE_BY_SIDE + runs)


@pytest.mark.parametrize("when", ["before", "after"])
def test_reload(tmp_path, when):
    """Of the registration before or after metatrain is there; then of a module that it wraps."""
    reload = "import importlib, _metatrain_lorem_registration as r; importlib.reload(r)"
    code = "\n".join([reload, REGISTERED] if when == "before" else [REGISTERED, reload])
    code += """
import importlib
importlib.reload(architectures)
assert architectures.find_all_architectures().count("lorem") == 1
assert sum(f.__name__ == "LoremFinder" for f in sys.meta_path if isinstance(f, type)) == 1
"""
    run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(REPOSITORY / "src"))


# --- a metatrain that this package does not fit


REGISTRY = """
def find_all_architectures(): return ["pet"]
def get_architecture_path(name): return name
"""
VERSIONS = r"metatrain-lorem 0\.1\.0 .* metatrain 2031\.7 .*metatrain<2026\.5,>=2026\.4"


def message_of_import(bare, folder, before=""):
    code = f"{before}\ntry: import metatrain.lorem\nexcept RuntimeError as error: print(error)"
    return bare.run("-W", "ignore", "-c", code, PYTHONPATH=folder).stdout


def test_later_metatrain_with_its_own_lorem(bare, tmp_path):
    own = write_package(tmp_path, utils="", utils__architectures=REGISTRY, lorem="")
    message = message_of_import(bare, own)
    assert re.search(VERSIONS, message)
    assert "of its own" in message and str(tmp_path / "metatrain" / "lorem") in message


@pytest.mark.parametrize(
    "modules",
    [{"utils": ""}, {"utils": "", "utils__architectures": "def find_all_architectures(): pass"}],
    ids=["no module", "no function"],
)
def test_later_metatrain_with_other_internals(bare, tmp_path, modules):
    other = write_package(tmp_path, **modules)
    message = message_of_import(bare, other)
    assert re.search(VERSIONS, message)
    assert "metatrain.utils.architectures" in message

    # metatrain might never ask for metatrain.lorem: there is a warning for that
    code = "import metatrain\ntry: import metatrain.utils.architectures\nexcept ImportError: pass"
    result = bare.run("-c", code, PYTHONPATH=other)
    assert re.search(VERSIONS, result.stderr)
    assert result.stderr.count("UserWarning") == 1


@pytest.mark.parametrize("late", [False, True])
def test_later_metatrain_without_a_function_of_the_model(bare, tmp_path, late):
    """Missed by the package itself, or by its model, which it imports when asked for it."""
    other = write_package(tmp_path, utils="", utils__architectures=REGISTRY, utils__hypers="")
    source = "from metatrain.utils.hypers import moved"
    if late:
        source = f"def __getattr__(name):\n    if name == '__model__':\n        {source}"
    (tmp_path / "metatrain_lorem.py").write_text(source)
    message = message_of_import(bare, other)
    assert re.search(VERSIONS, message)
    assert "cannot import name 'moved' from 'metatrain.utils.hypers'" in message


def test_folder_left_behind_by_another_version_is_no_clash(bare, tmp_path):
    left = write_package(tmp_path, utils="", utils__architectures=REGISTRY)
    (tmp_path / "metatrain" / "lorem").mkdir()
    code = "from metatrain.utils.architectures import *; print(find_all_architectures())"
    result = bare.run("-W", "error", "-c", code, PYTHONPATH=left)
    assert result.stdout == "['pet', 'lorem']\n"


@pytest.mark.slow
def test_other_architectures_work_beside_a_clash(tmp_path, wheel):
    metatrain = tmp_path / "later" / "metatrain"
    metatrain.mkdir(parents=True)
    for entry in (SITE_PACKAGES / "metatrain").iterdir():
        (metatrain / entry.name).symlink_to(entry)
    (metatrain / "lorem").mkdir()
    (metatrain / "lorem" / "__init__.py").touch()
    environment = Environment(tmp_path / "venv")
    environment.add(metatrain.parent, link_packages(tmp_path / "packages", "metatrain"))
    environment.pip("install", "--no-deps", wheel)
    code = """if True:
        from metatrain.utils.architectures import get_default_hypers
        from metatrain.utils.io import find_all_architectures, model_from_checkpoint
        assert find_all_architectures().count("lorem") == 1
        get_default_hypers("pet")
        try: model_from_checkpoint({"architecture_name": "lorem"}, "export")
        except RuntimeError as error: print(error)
    """
    assert "of its own" in environment.run("-W", "ignore", "-c", code).stdout


# --- metatrain of the running environment


def test_typo_is_corrected():
    from metatrain.utils.architectures import check_architecture_name

    with pytest.raises(ValueError, match="'lorm' is not a valid .* Did you mean 'lorem'"):
        check_architecture_name("lorm")


def test_missing_submodule():
    with pytest.raises(ModuleNotFoundError, match="metatrain.lorem.no_such_module"):
        import metatrain.lorem.no_such_module  # noqa: F401


def test_one_class_under_both_names():
    import metatrain.lorem.model

    import metatrain_lorem.model

    assert metatrain.lorem.model.Lorem is metatrain_lorem.model.Lorem
    # the spec is metatrain_lorem's own, hence reload and pickle work
    assert metatrain.lorem.model.__spec__.name == "metatrain_lorem.model"
    assert pickle.loads(b"cmetatrain.lorem.model\nLorem\n.") is metatrain_lorem.model.Lorem


def test_source_of_the_wrapped_module_is_found():
    import inspect

    from metatrain.utils import architectures

    assert inspect.getsource(architectures) == Path(architectures.__file__).read_text()
    assert type(architectures.__loader__).__name__ == "SourceFileLoader"


def test_schema_of_the_options_file(tmp_path):
    """metatrain reads ``documentation.py`` from the folder of each architecture for this."""
    code = """if True:
        from metatrain.utils.pydantic import get_train_json_schema
        assert "loremArchitecture" in get_train_json_schema(allow_missing_hypers=True)["$defs"]
    """
    run(sys.executable, "-c", code, cwd=tmp_path)


def test_spawned_data_loader_worker(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""if True:
        from torch.utils.data import DataLoader, Dataset

        class Architectures(Dataset):
            def __len__(self): return 1

            def __getitem__(self, index):
                import metatrain.lorem.model, metatrain_lorem
                assert metatrain.lorem is metatrain_lorem
                return metatrain.lorem.model.Lorem

        if __name__ == "__main__":
            context = "spawn"
            loader = DataLoader(
                Architectures(), batch_size=None, num_workers=1, multiprocessing_context=context
            )
            import metatrain.lorem.model
            assert next(iter(loader)) is metatrain.lorem.model.Lorem
            print("same")
    """)
    assert run(sys.executable, script, cwd=tmp_path).stdout == "same\n"


@pytest.mark.slow
def test_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""if True:
        import os
        from metatrain.utils.architectures import import_architecture
        print(os.environ["RANK"], import_architecture("lorem").__name__)
    """)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = run(sys.executable, *launcher, script, cwd=tmp_path)
    assert sorted(result.stdout.split("\n")) == ["", "0 metatrain_lorem", "1 metatrain_lorem"]


@pytest.mark.slow
def test_commands_of_metatrain(tmp_path):
    """Train, export, evaluate, restart and fine-tune, each in a process of its own."""
    frames = []
    for i in range(8):
        water = molecule("H2O")
        water.rattle(0.05, seed=i)
        results = {"energy": -14.0 + 0.1 * i, "forces": water.positions - water.positions.mean(0)}
        water.calc = SinglePointCalculator(water, **results)
        frames.append(water)
    ase.io.write(tmp_path / "water.xyz", frames)

    size = "{num_features: 8, num_spherical_features: 2, num_radial: 4, max_degree: 2}"
    data = """
  systems: {read_from: water.xyz, length_unit: angstrom}
  targets: {energy: {key: energy, unit: eV}}
"""

    def options(name, training):
        architecture = f"{{name: lorem, model: {size}, training: {training}}}"
        text = f"architecture: {architecture}\ntraining_set:{data}validation_set: 0.25\n"
        (tmp_path / name).write_text(text)

    options("train.yaml", "{num_epochs: 1, batch_size: 2}")
    options("restart.yaml", "{num_epochs: 2, batch_size: 2}")
    options("finetune.yaml", "{num_epochs: 1, batch_size: 2, finetune: {read_from: model.ckpt}}")
    (tmp_path / "eval.yaml").write_text(data)

    def mtt(*arguments):
        return run(sys.executable, "-m", "metatrain", *arguments, cwd=tmp_path).stdout

    mtt("train", "train.yaml")
    mtt("export", "model.ckpt", "-o", "exported.pt")
    assert "energy RMSE" in mtt("eval", "exported.pt", "eval.yaml")
    log = mtt("train", "restart.yaml", "--restart", "model.ckpt", "-o", "restarted.pt")
    assert "Restarting training from 'model.ckpt'" in log
    log = mtt("train", "finetune.yaml", "-o", "finetuned.pt")
    assert "Starting finetuning from 'model.ckpt'" in log
    assert (tmp_path / "restarted.pt").exists() and (tmp_path / "finetuned.pt").exists()
