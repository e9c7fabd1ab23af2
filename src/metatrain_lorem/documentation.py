"""
LOREM
=====

Equivariant potential whose atoms carry equivariant charges. The Coulomb potentials of these
charges, over all distances and periodic images, flow back into the local features (LOREM,
`arXiv 2507.19382 <https://arxiv.org/abs/2507.19382>`_).

Additional outputs
------------------

- ``feature``: the scalar features after the last stage;
- ``mtt::aux::{target}_last_layer_features``: the hidden features before the last linear layer of a
  target, for the stages of the model one after the other: density, each step of message passing,
  backbone, charge equilibration, long range. The energies of the charges and of a trained backbone
  are no linear functions of them;
- ``charge``: the charge of each atom (e), with charge equilibration, partial charges
  (``long_range.energy: charges``) or the target ``mtt::atomic_charge``;
- ``mtt::aux::electronegativity`` (eV/e) and ``mtt::aux::hardness`` (eV/e²) of each atom, with
  charge equilibration.

Model hyperparameters
---------------------

.. autoclass:: metatrain_lorem.documentation.ModelHypers
    :members:
    :undoc-members:

.. autoclass:: metatrain_lorem.documentation.LongRangeHypers
    :members:
    :undoc-members:

.. autoclass:: metatrain_lorem.documentation.ChargeEquilibrationHypers
    :members:
    :undoc-members:

.. autoclass:: metatrain_lorem.documentation.BackboneHypers
    :members:
    :undoc-members:

Trainer hyperparameters
-----------------------

.. autoclass:: metatrain_lorem.documentation.TrainerHypers
    :members:
    :undoc-members:
"""

from typing import Any, Literal

from metatrain.utils.hypers import init_with_defaults
from typing_extensions import TypedDict

from .training.hypers import TrainerHypers

__all__ = [
    "BackboneHypers",
    "ChargeEquilibrationHypers",
    "LongRangeHypers",
    "ModelHypers",
    "TrainerHypers",
    "check_hypers",
]


class LongRangeHypers(TypedDict):
    """The long-range block: equivariant charges and their Coulomb potentials."""

    enable: bool = True
    """Whether the model has the block. Without it nothing beyond the receptive field
    (``cutoff`` times one plus ``num_message_passing``) is felt, and engines may split the system
    over several ranks."""
    max_degree: int = 2
    """Largest degree of the charges: 0 for scalar charges only, 1 adds dipole-like and 2
    quadrupole-like ones. At most the ``max_degree`` of the model."""
    energy: Literal["features", "charges"] = "features"
    """What the charges act by: ``features``, as in the LOREM paper, where the potentials of several
    charges per atom update the features that all targets are read from, or ``charges``, where one
    partial charge per atom has the energy of classical electrostatics, and sums to the total charge
    (``extra_data: charge``, else zero). The latter goes on beyond the distances of training, makes
    dipole moments and answers to fields; other targets are local with it, ``max_degree`` of the
    charges has no meaning, and there is no charge equilibration beside it."""
    accuracy: float = 1e-6
    """Relative accuracy of the Coulomb sum over periodic images. The width of the Ewald Gaussians,
    the wave vectors and the mesh follow from it and from ``cutoff``; they are logged. Isolated
    structures are summed exactly."""
    exponents: list[int] = [1]
    """Interactions of the block: ``[1]`` for 1/r, ``[1, 6]`` adds a learned scalar per atom that
    acts through 1/r⁶, as dispersion does, levelling off at short distances. Its sum over periodic
    images has one channel, where that of 1/r has ten by default."""


class ChargeEquilibrationHypers(TypedDict):
    """The charge equilibration block: charges that minimise a global energy at a given total
    charge (``extra_data: charge``; without it all structures are taken as neutral). They act on
    the features and are an output of the model."""

    enable: bool = False
    """Whether the model has the block. It makes the range of the model infinite."""
    energy: Literal["variational", "celli"] = "variational"
    """Which energy of the charges joins that of the model: ``variational``, all that the charges
    minimise, or ``celli``, the Coulomb part alone as in the CELLI paper."""
    hardness: Literal["species", "features"] = "species"
    """What the hardness of an atom depends on: its ``species`` alone, as in the CELLI paper, or,
    with ``features``, its environment, too, for data where the same structure has several total
    charges (:ref:`choosing:Hardness`)."""
    after_long_range: bool = False
    """Whether charges are equilibrated after the long-range block, so that electronegativities know
    its potentials: for parts no farther apart than in training
    (:ref:`choosing:After the long range`)."""
    learn_widths: bool = False
    """Whether the widths of the Gaussian charges are learned per element, starting from the
    covalent radii, which they keep otherwise. Learned widths cost a finer mesh where all radii are
    large."""
    atomic_dipoles: bool = False
    """Whether the dipole moment (target ``mtt::dipole_moment``) has learned atomic dipoles besides
    the charges."""
    solver: Literal["auto", "dense", "iterative"] = "auto"
    """``dense`` stores and factorises the matrix of each structure, ``iterative`` never stores it.
    ``auto`` chooses by the size of the structure; the limits are logged."""
    accuracy: float = 1e-6
    """Relative accuracy of the Coulomb sum over periodic images, as that of ``long_range``."""
    tolerance: float | None = None
    """Residual at which the iterative solver stops, relative to the electronegativities; ``None``
    for 1e-5 in single and 1e-10 in double precision."""
    max_iterations: int = 100
    """Largest number of iterations; a structure that needs more is an error."""
    epsilon_infinity: float = 1.0
    """Dielectric constant of the electrons of periodic structures (water: 1.78). Charges that
    energies alone have taught are screened by it: Born charges derived from them are multiplied by
    its square root. Leave 1 where labels of charges, dipole moments or Born charges train them."""


class BackboneHypers(TypedDict):
    """Another architecture of metatrain inside the model: its features join those of LOREM before
    charges and long range, see :doc:`backbones`."""

    name: str | None = None
    """Architecture of the backbone, by its name in metatrain: ``pet``, ``soap_bpnn``,
    ``experimental.mace`` or any other one that offers features. ``None`` for no backbone."""
    hypers: dict[str, Any] = {}
    """Hyperparameters of the backbone, as under ``architecture.model`` of its own options; its own
    defaults where silent. With a ``checkpoint``, those stored there hold."""
    checkpoint: str | None = None
    """Checkpoint (``.ckpt``) of a trained model of that architecture: its weights are those that
    the backbone starts from. ``None`` for random ones. Read once: restarts ignore the path."""
    energy: bool | Literal["auto"] = "auto"
    """Whether the energy of the checkpoint is part of the model's: training starts from that
    potential and learns what it lacks. ``auto``: where there is a checkpoint with an energy."""
    freeze: bool = False
    """Whether the weights of the backbone stay as they are. May change from one run to the next.
    Those that the backbone keeps fixed itself (LoRA of PET) stay in any case."""


class ModelHypers(TypedDict):
    """Hyperparameters of the LOREM model."""

    cutoff: float = 5.0
    """Distance up to which atoms see each other directly, in the length unit of the data (the
    default is meant for Å). The cost of the short-range part grows with its third power."""
    cutoff_function: Literal["cosine", "smooth"] = "cosine"
    """How the influence of a neighbour ends at the cutoff: ``cosine``, half a period of a cosine,
    or ``smooth``, which has no kink in any derivative but weighs distant neighbours less."""
    radial_basis: Literal["bernstein", "bessel"] = "bernstein"
    """Functions of the distance: ``bernstein`` polynomials, or ``bessel`` functions (sines over
    the distance)."""
    num_radial: int = 32
    """Number of radial functions."""
    num_features: int = 128
    """Number of scalar features per atom, and width of the networks."""
    num_spherical_features: int = 8
    """Number of spherical (equivariant) features per degree and atom."""
    num_species_features: int = 8
    """Number of features that describe a chemical species."""
    max_degree: int = 6
    """Largest degree of the spherical harmonics and spherical features. Tensor targets need at
    least their own degree."""
    num_message_passing: int = 0
    """Number of message-passing steps. Each extends the receptive field by ``cutoff``, at
    several times the cost and memory of the rest of the short-range part."""
    equivariant_message_passing: bool = True
    """Whether message passing carries spherical features too, or scalar ones only."""
    initialize_node_features: bool = True
    """Whether scalar features start from the atom's species. Without it an atom without
    neighbours knows nothing of its species."""
    long_range: LongRangeHypers = init_with_defaults(LongRangeHypers)
    """The long-range block."""
    charge_equilibration: ChargeEquilibrationHypers = init_with_defaults(ChargeEquilibrationHypers)
    """The charge equilibration block."""
    backbone: BackboneHypers = init_with_defaults(BackboneHypers)
    """Another architecture inside the model."""
    norms: Literal["smooth", "lorem-jax"] = "smooth"
    """What is made of spherical features for the networks: ``smooth`` invariants, with which forces
    of crystals change in proportion to displacements (phonons exist), or the norms of
    ``lorem-jax``, which have cusps where symmetry makes a feature vanish. Checkpoints imported from
    lorem-jax, and those of older versions, keep the latter, with which Born charges are predicted
    as there, too."""
    zbl: bool = False
    """Whether to add the short-range ZBL repulsion as a baseline of energies, for atoms that come
    closer than in the training data. Needs lengths in Å."""


def has_partial_charges(hypers: ModelHypers) -> bool:
    """
    :param hypers: of a model
    :return: whether its long range is that of partial charges, which change no features
    """
    return hypers["long_range"]["enable"] and hypers["long_range"]["energy"] == "charges"


def has_charges(hypers: ModelHypers) -> bool:
    """
    :param hypers: of a model
    :return: whether a block makes charges that sum to the total charge, and answer to fields
    """
    return hypers["charge_equilibration"]["enable"] or has_partial_charges(hypers)


def has_long_range_features(hypers: ModelHypers) -> bool:
    """
    :param hypers: of a model
    :return: whether potentials of charges change its features
    """
    return hypers["long_range"]["enable"] and hypers["long_range"]["energy"] == "features"


def equilibrates_last(hypers: ModelHypers) -> bool:
    """
    :param hypers: of a model
    :return: whether charges are equilibrated after the long-range block
    """
    options = hypers["charge_equilibration"]
    return options["enable"] and options["after_long_range"]


def check_hypers(hypers: ModelHypers) -> None:
    """Refuse numbers out of range, which types alone let pass.

    :param hypers: of a model
    :raises ValueError: naming the hyper and its value
    """
    if not 0.0 < hypers["cutoff"] < float("inf"):
        raise ValueError(
            f"architecture.model.cutoff: {hypers['cutoff']} is not a positive, finite distance"
        )
    for key in ("num_features", "num_spherical_features", "num_species_features", "num_radial"):
        if hypers[key] < 1:
            raise ValueError(f"architecture.model.{key}: {hypers[key]} is not a positive number")
    for key in ("max_degree", "num_message_passing"):
        if hypers[key] < 0:
            raise ValueError(f"architecture.model.{key}: {hypers[key]} is negative")
    degree = hypers["long_range"]["max_degree"]
    # where it has no meaning, its default may be the larger one
    if has_long_range_features(hypers) and not 0 <= degree <= hypers["max_degree"]:
        raise ValueError(
            f"architecture.model.long_range.max_degree: {degree} is not between 0 and max_degree "
            f"({hypers['max_degree']})"
        )
    exponents = hypers["long_range"]["exponents"]
    if sorted(exponents) not in ([1], [1, 6]):
        raise ValueError(
            f"architecture.model.long_range.exponents: {exponents} is neither [1] nor [1, 6]"
        )
    if len(exponents) > 1 and hypers["long_range"]["energy"] == "charges":
        raise ValueError(
            f"architecture.model.long_range.exponents: {exponents} needs `energy: features`; with "
            "`energy: charges` there is only 1/r"
        )
    if has_partial_charges(hypers) and hypers["charge_equilibration"]["enable"]:
        raise ValueError(
            "architecture.model.long_range.energy: charges beside charge_equilibration: the total "
            "charge of a structure would act twice. Take one of them"
        )
    for block in ("long_range", "charge_equilibration"):
        accuracy = hypers[block]["accuracy"]
        if not 1e-12 <= accuracy <= 1e-2:
            raise ValueError(
                f"architecture.model.{block}.accuracy: {accuracy} is not between 1e-12 and 1e-2"
            )
    if equilibrates_last(hypers) and not has_long_range_features(hypers):
        raise ValueError(
            "architecture.model.charge_equilibration.after_long_range: true without long_range: "
            "enable that block, or leave the option out"
        )
    tolerance = hypers["charge_equilibration"]["tolerance"]
    if tolerance is not None and not 0.0 < tolerance < 1.0:
        raise ValueError(
            f"architecture.model.charge_equilibration.tolerance: {tolerance} is not between 0 and 1"
        )
    epsilon = hypers["charge_equilibration"]["epsilon_infinity"]
    if not 1.0 <= epsilon < float("inf"):
        raise ValueError(
            f"architecture.model.charge_equilibration.epsilon_infinity: {epsilon} is no dielectric "
            "constant: 1 or more"
        )
    iterations = hypers["charge_equilibration"]["max_iterations"]
    if iterations < 1:
        raise ValueError(
            f"architecture.model.charge_equilibration.max_iterations: {iterations} is not a "
            "positive number"
        )
