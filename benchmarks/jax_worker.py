"""Worker process for lorem-jax: needs jax and lorem-jax, no PyTorch. See ``main`` for its tasks."""

import json
import time
from pathlib import Path

import ase.io
import numpy as np
from common import displaced, measure, memory, read_task, structure

SODIUM, CHLORINE = 11, 17


def write_checkpoint(folder: Path, long_range: bool) -> dict:
    """Write a model with default hypers and random weights."""
    import jax
    from lorem import Lorem
    from marathon.io import to_dict, write_msgpack, write_yaml

    model = Lorem(lr=long_range)
    parameters = model.init(jax.random.key(0), *model.dummy_inputs())
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "model.yaml", to_dict(model))
    write_yaml(folder / "baseline.yaml", {"elemental": {SODIUM: 0.0, CHLORINE: 0.0}})
    write_msgpack(folder / "model.msgpack", jax.tree.map(np.asarray, parameters))
    return {}


def read_checkpoint(folder: Path):
    from marathon.io import from_dict, read_msgpack, read_yaml

    return from_dict(read_yaml(folder / "model.yaml")), read_msgpack(folder / "model.msgpack")


def prepare(frame, cutoff: float, wavelength: float | None):
    """A batch of one structure, as lorem-jax's calculator makes it but without skin.

    :param frame: structure
    :param cutoff: Å
    :param wavelength: of the Ewald grid, Å; None for lorem-jax's default, an eighth of the cutoff
    """
    import jax
    from lorem.batching import to_batch, to_sample

    # a coarser grid with the default smearing changes nothing but the number of k-vectors
    ewald = {} if wavelength is None else {"lr_wavelength": wavelength, "smearing": cutoff / 4}
    batch = to_batch([to_sample(frame, cutoff, keys=(), **ewald)], [])
    return jax.tree.map(jax.numpy.asarray, batch)


def measure_energy(task: dict) -> dict:
    """Times of energy and forces, jitted; see :func:`main`."""
    import jax

    # as in lorem-jax's own calculator
    jax.config.update("jax_default_matmul_precision", "float32")
    jax.config.update("jax_enable_x64", task["precision"] == 64)
    model, parameters = read_checkpoint(Path(task["model"]))
    frame = structure(task["atoms"])
    # the first batch also loads libraries
    prepare(frame, model.cutoff, task["wavelength"])
    start = time.perf_counter()
    batch = prepare(frame, model.cutoff, task["wavelength"])
    preparation = time.perf_counter() - start
    real = {32: np.float32, 64: np.float64}[task["precision"]]
    batch, parameters = jax.tree.map(
        lambda x: x.astype(real) if jax.numpy.issubdtype(x.dtype, np.floating) else x,
        (batch, jax.tree.map(jax.numpy.asarray, parameters)),
    )
    predict = jax.jit(model.predict)
    before = memory("VmRSS")
    # the list of neighbours stays: it can't be seen whether a pair at the cutoff is in it
    padding = len(batch.sr.positions) - len(frame)

    def at(positions):
        padded = np.pad(positions, ((0, padding), (0, 0)))
        return batch._replace(sr=batch.sr._replace(positions=jax.numpy.asarray(padded, real)))

    def evaluate(call: int) -> float:
        moved = jax.block_until_ready(at(displaced(frame, call).positions))
        start = time.perf_counter()
        jax.block_until_ready(predict(parameters, moved))
        return time.perf_counter() - start

    times = measure(evaluate, task["repetitions"], task["warm_ups"])
    peak = memory("VmHWM") - before
    if task["save"]:
        results = predict(parameters, at(frame.positions))
        forces = np.asarray(results["forces"])[: len(frame)]
        np.savez(task["save"], energy=np.asarray(results["energy"])[0], forces=forces)
    return {"times": times, "neighbor_list": preparation, "bytes": peak}


def measure_training(task: dict) -> dict:
    """Times of training steps per batch of structures, jitted; see :func:`main`."""
    import jax
    import optax
    from lorem import Lorem
    from lorem.batching import to_batch, to_sample
    from marathon.evaluate import get_loss_fn

    jax.config.update("jax_default_matmul_precision", "float32")
    model = Lorem()
    frames = ase.io.read(task["data"], ":")
    size = task["batch_size"]
    groups = [frames[i : i + size] for i in range(0, len(frames) - size + 1, size)]

    # with neighbour lists; made once
    samples = [
        [to_sample(frame, model.cutoff) for frame in group] for group in groups[: task["batches"]]
    ]

    def collate(group):
        batch = to_batch(group, ("energy", "forces"))
        return jax.block_until_ready(jax.tree.map(jax.numpy.asarray, batch))

    # the first batch also loads libraries
    collate(samples[0])
    start = time.perf_counter()
    batches = [collate(group) for group in samples]
    loading = (time.perf_counter() - start) / len(batches)

    parameters = model.init(jax.random.key(0), *model.dummy_inputs())
    optimizer = optax.adam(1e-5)
    state = optimizer.init(parameters)
    loss = get_loss_fn(model.predict, weights={"energy": 0.5, "forces": 0.5}, correct_mean=True)

    @jax.jit
    def step(parameters, state, batch):
        gradient, _ = jax.grad(loss, has_aux=True)(parameters, batch)
        updates, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state

    def run(call: int) -> float:
        nonlocal parameters, state
        start = time.perf_counter()
        for batch in batches:
            parameters, state = jax.block_until_ready(step(parameters, state, batch))
        return (time.perf_counter() - start) / len(batches)

    return {"times": measure(run, task["repetitions"]), "loading": loading}


def main() -> None:
    """Tasks, by ``task``:

    * ``checkpoint``: ``folder`` to write, ``long_range``;
    * ``energy``: ``model`` (folder), ``atoms``, ``repetitions``, ``warm_ups``, ``precision``,
      ``wavelength`` (Å or null), ``save`` (file for energy and forces, or empty);
    * ``training``: ``data`` (file), ``batch_size``, ``batches``, ``repetitions``.
    """
    task = read_task()
    if task["task"] == "checkpoint":
        result = write_checkpoint(Path(task["folder"]), task["long_range"])
    elif task["task"] == "energy":
        result = measure_energy(task)
    else:
        result = measure_training(task)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
