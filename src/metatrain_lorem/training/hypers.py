"""Hyperparameters of the trainer."""

from typing import Literal

from metatrain.composition import FixedCompositionWeights
from metatrain.scaler import FixedScalerWeights
from metatrain.utils.loss import LossSpecification
from typing_extensions import NotRequired, TypedDict


class FinetuneHypers(TypedDict):
    """Start from the weights of another model; all parameters are trained further."""

    read_from: str | None = None
    """Checkpoint (``.ckpt``) to start from, ``None`` to start from random weights.

    What may differ from the checkpoint is on the page :doc:`fine-tuning`: data, elements, targets,
    the zero of energy, and blocks that are new.
    """
    method: NotRequired[Literal["full"]] = "full"
    """Which parameters to train: all of them."""


class TrainerHypers(TypedDict):
    """Hyperparameters for training LOREM models."""

    distributed: NotRequired[Literal[True]]
    """Need not be set: distributed training starts by itself, see ``distributed_port``. By this
    entry metatrain tells which architectures may be trained by SLURM jobs of several tasks."""
    distributed_port: int = 39591
    """Port through which the processes of a distributed SLURM job find each other.

    Training is distributed when ``mtt train`` is started by ``torchrun`` or as a SLURM job with
    more than one task, on GPUs (NCCL) or, with ``device: cpu``, on CPUs (Gloo). ``torchrun``
    brings its own port.
    """
    batch_size: int = 8
    """Number of structures per batch and process."""
    max_atoms_per_batch: int | None = None
    """Fill batches up to this number of atoms instead of a number of structures.

    Structures with more atoms are left out, with a warning. ``batch_size`` then matters only for
    fitting the composition baseline and the scales.
    """
    num_epochs: int = 1000
    """Number of passes over the training set."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """``"muon"`` for Muon on the matrices of linear maps and embeddings and AdamW on all other
    parameters, weights of single outputs included, or ``"adamw"`` for all. On dipeptides, ten
    epochs with Muon left half the force error of AdamW, which wants a smaller learning rate (1e-3).
    """
    learning_rate: float = 5e-3
    """Learning rate at the end of the warm-up; AdamW beside Muon takes a fifth of it."""
    backbone_learning_rate_factor: float = 1.0
    """What the learning rate is multiplied by for the weights of a backbone, zero or more. A
    trained one wants less than 1; ``freeze`` of the backbone stands for 0, whatever this is."""
    warmup_fraction: float = 0.01
    """Fraction of the training steps in which the learning rate rises linearly from zero.

    After that it falls to zero on a cosine.
    """
    weight_decay: float = 0.0
    """Decoupled weight decay: per step, weights shrink by this times the learning rate.

    It acts on the matrices of linear maps only, never on biases, norms, embeddings and the
    weights of single paths and channels.
    """
    grad_clip_norm: float = 1.0
    """Largest norm of the gradient with respect to all parameters; longer ones are scaled down."""
    loss: str | dict[str, LossSpecification | str] = "mse"
    """Loss function, for all targets or per target, see :ref:`loss-functions`.

    Means are taken over all labels of a batch, also when it is spread over several processes or
    some of its labels are missing (NaN).
    """
    final_energy_factor: float = 1.0
    """What the loss weights of all energies are multiplied by in the last fifth of the epochs,
    while the learning rate falls from a tenth of its maximum to zero
    (:ref:`choosing:Energies last`). All other weights stay, those of forces included, and losses
    are logged without it: with ``best_model_metric: loss`` it hardly acts on the choice of the
    epoch, the products of errors are better here. A finished run that is continued with a larger
    ``num_epochs`` has its last fifth anew."""
    atomic_baseline: FixedCompositionWeights | str = {}
    """Baseline per target and element that is subtracted from the labels.

    By default a least-squares fit to the training set. ``{"energy": {1: -0.5}}`` fixes the energy
    of hydrogen, ``{"energy": 0.0}`` that of all elements; a path names the checkpoint of a trained
    composition model. Charges of atoms, ``mtt::atomic_charge``, never have a baseline.
    In fine-tuning, baselines that the checkpoint has move by what the errors of its model have in
    common, unless they are given here, see :doc:`fine-tuning`.
    """
    scale_targets: bool = True
    """Divide each target by its root mean square over the training set (baseline removed).

    Charges of atoms and, with charge equilibration, dipole moments are never divided: their losses
    are in e² and (e Å)².
    """
    energy_scale: Literal["energies", "forces"] = "energies"
    """What energies with forces are divided by (:ref:`choosing:Scale of energies`).

    ``"energies"``: their root mean square per atom; ``"forces"``: the root of the sum of the
    squares of this and of the root mean square of the components of forces times 1 Å. Losses of
    energy and forces are divided by its square, so that the same weights of other losses count by
    more: take those that the log gives. Scales of a checkpoint and in ``fixed_scaling_weights``
    stay, and so does that of energies which a backbone gives as well."""
    fixed_scaling_weights: FixedScalerWeights | str = {}
    """Scales that replace the computed ones: a value per target or per target and element, or the
    checkpoint of a scaler (then ``atomic_baseline`` must be a checkpoint, too). A target that is
    trained further keeps its scale; another one here is an error."""
    per_structure_targets: list[str] = []
    """Targets whose losses and errors are taken per structure instead of per atom.

    With charge equilibration, ``mtt::dipole_moment`` always is.
    """
    rotational_augmentation: bool = False
    """Rotate and invert structures and labels at random in every epoch.

    The model is equivariant; this can only average over the discretisation error of meshes.
    """
    num_workers: int | None = None
    """Number of processes that prepare structures anew in every epoch. Results do not depend on it.

    Without them, i.e. with 0, neighbour lists and labels for the loss are made once and kept, as
    far as they fit into a quarter of the free memory, and joined to batches by the training
    process. ``None`` starts processes only for data that do not fit, as many as there are CPU cores
    to spare, and only if it takes longer to prepare a structure than to take it over from another
    process. The log says what was measured and chosen.
    """
    log_interval: int = 1
    """Number of epochs from one progress line to the next."""
    checkpoint_interval: int = 25
    """Number of epochs from one checkpoint to the next."""
    best_model_metric: Literal["rmse_prod", "mae_prod", "loss"] = "mae_prod"
    """The exported model is that of the epoch in which this is smallest on the validation set: the
    product of all RMSEs, the product of all MAEs, or the loss."""
    finetune: FinetuneHypers = {"read_from": None, "method": "full"}
    """Fine-tuning of a trained model."""
