"""Train on small.xyz in a folder and write down losses, gradients and weights.

``python train_small.py FOLDER BATCH_SIZE OPTIMIZER``, in one process or by torchrun. Hypers of the
model may follow, as JSON. It needs the folder ``tests`` in ``PYTHONPATH``.
"""

import json
import os
import sys
from pathlib import Path

import torch
from helpers import training

from metatrain_lorem.training import epoch

folder, batch_size, optimizer = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
hypers = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}

gradients, losses = [], []
clip, finalize = torch.nn.utils.clip_grad_norm_, epoch.Metrics.finalize


def clip_and_record(parameters, limit):
    gradients.append(torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]))
    return clip(parameters, limit)


def finalize_and_record(self):
    losses.append(finalize(self))
    return losses[-1]


torch.nn.utils.clip_grad_norm_ = clip_and_record
epoch.Metrics.finalize = finalize_and_record

dataset, info = training.read(folder / "small.xyz")
model = training.new_model(info, **hypers)
trainer = training.new_trainer(batch_size=batch_size, num_epochs=2, optimizer=optimizer)
training.fit(trainer, model, dataset, dataset, folder)
result = {
    "losses": losses,
    "gradients": torch.stack(gradients).tolist(),
    "weights": torch.cat([p.detach().reshape(-1) for p in model.parameters()]).tolist(),
}
rank = os.environ.get("RANK", "only")
(folder / f"result_{rank}.json").write_text(json.dumps(result))
