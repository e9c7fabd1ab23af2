"""Write muon.json: weights after some steps of ``optax.contrib.muon``, and the gradients for them.

Needs jax and optax (extra ``lorem-jax``): ``python tests/golden/muon.py``.
"""

import json
from pathlib import Path

import jax
import numpy as np
import optax
from optax.contrib import muon

jax.config.update("jax_enable_x64", True)

LEARNING_RATE, WEIGHT_DECAY, STEPS = 0.02, 0.1, 4
SHAPES = {"wide": (3, 5), "tall": (6, 2), "first": (3, 4), "second": (3, 4), "bias": (5,)}

rng = np.random.default_rng(0)
start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
gradients = [{n: rng.normal(size=shape) for n, shape in SHAPES.items()} for _ in range(STEPS)]

optimizer = muon(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
weights = start
state = optimizer.init(weights)
for gradient in gradients:
    updates, state = optimizer.update(gradient, state, weights)
    weights = optax.apply_updates(weights, updates)

result = {
    "optax": optax.__version__,
    "learning_rate": LEARNING_RATE,
    "weight_decay": WEIGHT_DECAY,
    "start": start,
    "gradients": gradients,
    "end": weights,
}
path = Path(__file__).with_suffix(".json")
path.write_text(json.dumps(result, default=lambda x: np.asarray(x).tolist()) + "\n")
