"""Write the reference numbers of this folder with lorem-jax, in double precision.

Needs lorem-jax and mpmath: ``python tests/golden/lorem_jax/make_reference.py``. It writes

* ``structures.xyz``, their order is ``info["name"]``'s;
* ``SETTING/model/``: random weights as a lorem-jax checkpoint, settings as in ``SETTINGS`` below;
* ``reference.npz``: ``SETTING/STRUCTURE/energy`` (eV, without the baseline), ``atomic_energies``,
  ``forces`` (eV/Å), ``virial`` (dE/d(strain), eV); for ``born_charges``, which is a ``LoremBEC``,
  ``apt`` (e, ``[atoms, displacement, polarisation]``);
* ``e3x_binomials.npz``: binomial coefficients of 31 and 30 as e3x evaluates them.

e3x takes the binomial coefficients of its Bernstein polynomials from ``jax.scipy.special.betaln``,
whose relative errors reach 6e-8 in double precision: see ``e3x_binomials.npz``. For the other
numbers exact values stand in its place, so that forces are exact derivatives of the energies, and
the Ewald sum is converged to 1e-13.
"""

import shutil
from functools import partial
from pathlib import Path

import ase
import ase.io
import jax
import jax.numpy as jnp
import jaxpme.batched_mixed.batching as jaxpme_batching
import mpmath
import numpy as np
from ase.build import bulk, fcc111, molecule
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.scipy.special import betaln
from lorem import Lorem
from lorem.batching import to_batch
from lorem.models.bec import LoremBEC
from marathon.data.sample import Sample
from marathon.io import to_dict, write_msgpack, write_yaml

jax.config.update("jax_enable_x64", True)

FOLDER = Path(__file__).parent
SMALL = dict(
    cutoff=4.5, num_features=8, num_radial=12, num_species=4, num_spherical_features=3, max_degree=3
)
SETTINGS = {
    "plain": dict(SMALL),
    "message_passing": dict(SMALL, num_message_passing=2, num_spherical_features=2, max_degree=2),
    "scalar_message_passing": dict(
        SMALL, num_message_passing=1, equivariant_message_passing=False, max_degree_lr=1
    ),
    "short_range": dict(SMALL, lr=False, num_message_passing=1, cutoff_fn="smooth_cutoff"),
    "zero_start": dict(SMALL, initialize_node_features=False, max_degree_lr=0, num_radial=1),
    "born_charges": dict(SMALL, num_message_passing=1, max_degree=2, num_spherical_features=2),
}
BASELINE = {"elemental": {1: -13.5, 6: -1030.25, 8: -2041.0, 11: -4420.0, 17: -12520.5, 29: -7.125}}

# converged: the pairs reach further than the model's cutoff, where its own functions end
EWALD = dict(cutoff=7.5, smearing=1.0, lr_wavelength=0.4)


def make_structures() -> list[ase.Atoms]:
    """Periodic, slabs with their vacuum along z and y, isolated; all atoms off their sites."""
    rng = np.random.default_rng(7)
    triclinic = bulk("NaCl", "rocksalt", a=5.6) * [2, 1, 1]
    triclinic.cell[:] = triclinic.cell @ (np.eye(3) + rng.uniform(-0.15, 0.15, (3, 3)))
    triclinic.set_scaled_positions(triclinic.get_scaled_positions() + rng.uniform(0, 0.1, (4, 3)))

    water = molecule("H2O")
    water.center()
    cell = ase.Atoms(pbc=True, cell=[[5.2, 0.3, -0.2], [0.4, 5.6, 0.1], [-0.3, 0.2, 6.1]])
    for corner in ([0, 0, 0], [0.5, 0.5, 0.45]):
        copy = water.copy()
        copy.rotate(90 * rng.uniform(), rng.normal(size=3), center="COM")
        copy.translate(corner @ cell.cell[:])
        cell.extend(copy)

    slab = fcc111("Cu", (1, 2, 2), a=3.7)
    slab.extend(ase.Atoms("OH", positions=slab.positions[-1] + [[0.1, 0.2, 1.9], [0.6, 0.9, 2.3]]))
    other = slab.copy()
    for atoms, order, axis in ((slab, (0, 1, 2), 2), (other, (1, 2, 0), 1)):
        # vacuum that images do not see through: six times the longest periodic vector
        atoms.cell[2] = [0.0, 0.0, 40.0]
        atoms.set_cell(atoms.cell[list(order)][:, list(order)])
        atoms.positions = atoms.positions[:, list(order)]
        atoms.pbc = [i != axis for i in range(3)]

    cluster = ase.Atoms("Na2Cl2", positions=[[0, 0, 0], [2.7, 2.7, 0], [2.7, 0, 0], [0, 2.7, 0]])
    cluster.extend(ase.Atoms("Cl", positions=[[9.0, 4.0, 3.0]]))
    structures = {
        "triclinic": triclinic,
        "water": cell,
        "slab_z": slab,
        "slab_y": other,
        "ethanol": molecule("CH3CH2OH"),
        "cluster": cluster,
        "pair": ase.Atoms("NaCl", positions=[[0, 0, 0], [0, 3.0, 7.5]]),
        "atom": ase.Atoms("C"),
    }
    for name, atoms in structures.items():
        atoms.rattle(0.08, rng=rng)
        atoms.positions = np.round(atoms.positions, 6)
        atoms.set_cell(np.round(atoms.cell[:], 6))
        for key in list(atoms.arrays):
            if key not in ("numbers", "positions"):
                del atoms.arrays[key]
        atoms.calc, atoms.info = None, {"name": name}
        atoms.set_constraint()
    return list(structures.values())


def make_batch(structures: list[ase.Atoms]):
    samples = []
    for atoms in structures:
        structure = jaxpme_batching.prepare(atoms, dtype=np.float64, **EWALD)
        samples.append(Sample(structure, {"num_atoms": len(atoms)}))
    return jax.tree.map(jnp.asarray, to_batch(samples, []))


def make_parameters(model: Lorem, batch, seed: int):
    """Random weights, single precision: biases and scales off their start values, and tensor
    products scaled so that all degrees of their outputs are of order 1 (they would be tiny)."""
    rng = np.random.default_rng(seed)
    parameters = jax.jit(model.init)(jax.random.key(seed), *batch[:4])
    parameters = flatten_dict(parameters)
    parameters = {key: np.array(value, dtype=np.float64) for key, value in parameters.items()}
    for key, value in parameters.items():
        if key[-1] in ("bias", "scale"):
            parameters[key] = value + 0.1 * rng.normal(size=value.shape)

    @jax.jit
    def outputs_of_modules(parameters):
        return model.apply(
            parameters, *batch[:4], capture_intermediates=True, mutable="intermediates"
        )[1]["intermediates"]

    for key, kernel in parameters.items():
        if kernel.ndim == 7:
            outputs = flatten_dict(outputs_of_modules(unflatten_dict(parameters)))
            output = np.asarray(outputs[key[1:-1] + ("__call__",)][0])
            output = output.reshape(-1, *output.shape[-2:])
            for degree in range(kernel.shape[5]):
                block = output[:, degree**2 : (degree + 1) ** 2]
                kernel[..., degree, :] /= np.sqrt(np.mean(block**2))
    return {key: value.astype(np.float32) for key, value in parameters.items()}


def exact_betaln(a, b):
    return jnp.asarray(
        [float(mpmath.log(mpmath.beta(int(x), int(y)))) for x, y in zip(a, b, strict=True)]
    )


def e3x_binomials(degree: int) -> np.ndarray:
    k = jnp.arange(degree + 1)
    return np.exp(-betaln(1 + degree - k, 1 + k) - jnp.log(degree + 1))


def main() -> None:
    np.savez(FOLDER / "e3x_binomials.npz", **{str(n): e3x_binomials(n) for n in (31, 30)})
    jax.scipy.special.betaln = exact_betaln
    # by default vacuum is cut down to 1.5 times the longest periodic vector, which costs 1e-5
    jaxpme_batching.shrink_2d_cell = lambda cell, pbc, positions: cell

    structures = make_structures()
    ase.io.write(FOLDER / "structures.xyz", structures)
    results = {}
    batch = make_batch(structures)
    ends = np.cumsum([len(atoms) for atoms in structures])
    for seed, (setting, hypers) in enumerate(SETTINGS.items()):
        model = LoremBEC(**hypers) if setting == "born_charges" else Lorem(**hypers)
        parameters = make_parameters(model, batch, seed)
        folder = FOLDER / setting / "model"
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        write_yaml(folder / "model.yaml", to_dict(model))
        write_yaml(folder / "baseline.yaml", BASELINE)
        write_msgpack(folder / "model.msgpack", unflatten_dict(parameters))

        parameters = {key: value.astype(np.float64) for key, value in parameters.items()}
        parameters = unflatten_dict(parameters)
        prediction = jax.jit(partial(model.predict, stress=True))(parameters, batch)
        atomic_energies = jax.jit(model.energy)(parameters, batch)[1]
        if setting == "born_charges":
            atomic_energies = atomic_energies[0]
        atomic_energies = np.asarray(atomic_energies)
        for i, (atoms, end) in enumerate(zip(structures, ends, strict=True)):
            prefix = f"{setting}/{atoms.info['name']}"
            rows = slice(end - len(atoms), end)
            results[f"{prefix}/energy"] = np.asarray(prediction["energy"][i])
            results[f"{prefix}/atomic_energies"] = atomic_energies[rows]
            results[f"{prefix}/forces"] = np.asarray(prediction["forces"][rows])
            results[f"{prefix}/virial"] = np.asarray(prediction["stress"][i])
            if "apt" in prediction:
                results[f"{prefix}/apt"] = np.asarray(prediction["apt"][rows])
            rms = np.sqrt(np.mean(results[f"{prefix}/forces"] ** 2))
            print(f"{prefix}: {atomic_energies[rows].sum():.6f} eV, forces {rms:.3f} eV/Å")
    np.savez_compressed(FOLDER / "reference.npz", **results)


if __name__ == "__main__":
    main()
