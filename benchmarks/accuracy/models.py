"""The models that are compared, and what a training of each is given."""

from dataclasses import dataclass, field

CUTOFF = 5.0  # Å, of all models but one
CLIP = {"grad_clip_norm": 1.0}
LAST = {"final_energy_factor": 100.0}
BY_FORCES = {"energy_scale": "forces"}

SMALL = {
    "cutoff": CUTOFF,
    "num_radial": 12,
    "num_features": 32,
    "num_spherical_features": 4,
    "max_degree": 3,
    "long_range": {"max_degree": 2},
}
"""lorem's size in options/small.yaml."""

SMALL_TRAINING = {"batch_size": 8, "learning_rate": 1e-2, **CLIP}
"""Its training, but for the weight of energies in the end."""

PET_SMALL = {
    "cutoff": CUTOFF,
    "d_pet": 64,
    "d_head": 64,
    "d_node": 128,
    "d_feedforward": 128,
    "num_heads": 4,
}
"""Half of PET's default widths."""

SOAP_BPNN = {"soap": {"cutoff": {"radius": CUTOFF}}}

BESIDE = {
    "cutoff": CUTOFF,
    "num_radial": 8,
    "num_features": 32,
    "num_spherical_features": 4,
    "max_degree": 2,
}
"""lorem's own short range beside a backbone, that of options/pet-with-charges.yaml."""


@dataclass(frozen=True)
class Model:
    """What differs from the defaults of the architecture."""

    architecture: str
    label: str
    hypers: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    predicts_charges: bool = False
    """Atom by atom, without equilibration"""
    knows_total_charge: bool = True
    """Whether it is given the total charge of charged structures, if it can be"""
    charge_factor: float = 1.0
    """Times what lorem's log advises as the weight of charges and dipole moments"""

    @property
    def equilibrates(self) -> bool:
        return self.hypers.get("charge_equilibration", {}).get("enable", False)


def _lorem(name: str, label: str, hypers: dict, training: dict) -> dict[str, Model]:
    """Models of one size: with and without each of the long-range blocks, and with charges of lower
    degree."""
    long_range = hypers.get("long_range", {})
    off = {"long_range": {"enable": False}}
    on = {"charge_equilibration": {"enable": True}}
    training = {"batch_size": 8, **training, **CLIP}
    variants = {
        "sr": ("short range", hypers | off),
        "lr": ("long range", hypers | {"long_range": long_range}),
        "charges": ("charges", hypers | {"long_range": long_range | {"energy": "charges"}}),
        "qeq": ("equilibration", hypers | off | on),
        "both": ("both", hypers | {"long_range": long_range} | on),
    }
    if long_range.get("max_degree") == 2:
        less = {"long_range": long_range | {"max_degree": 1}}
        variants["lr1"] = ("long range to degree 1", hypers | less)
        variants["both1"] = ("both, to degree 1", hypers | less | on)
        local = {"charge_equilibration": {"enable": True, "hardness": "features"}}
        last = {"charge_equilibration": {"enable": True, "after_long_range": True}}
        both = variants["both"][1]
        variants["both-features"] = ("both, hardness by features", both | local)
        variants["both-after"] = ("both, equilibration last", both | last)
    return {
        f"{name}-{key}": Model("lorem", f"{label}, {variant_label}", variant, training)
        for key, (variant_label, variant) in variants.items()
    }


def _backbone(name: str, label: str, hypers: dict, training: dict) -> dict[str, Model]:
    """lorem's blocks behind a peer, which keeps its hypers and its learning rate.

    :param name: of the peer on the command line
    :param label: of the peer
    :param hypers: of ``backbone``
    :param training: what differs from lorem's
    """
    hypers = BESIDE | {"long_range": {"max_degree": 1}, "backbone": hypers}
    models = _lorem(f"{name}-lorem", f"{label} + lorem", hypers, training)
    # without a block it is the peer and a second short range
    return {key: model for key, model in models.items() if not key.endswith("-sr")}


def _peer(
    name: str, label: str, architecture: str, hypers: dict, training: dict
) -> dict[str, Model]:
    """A model of metatrain without and with its long range, which both peers switch alike."""
    far = hypers | {"long_range": {"enable": True}}
    return {
        name: Model(architecture, label, hypers, training),
        f"{name}-lr": Model(architecture, f"{label}, long range", far, training),
    }


MODELS: dict[str, Model] = {
    **_lorem("lorem", "lorem", SMALL, {"learning_rate": 1e-2}),
    # the training of options/small.yaml; those of all others keep the weights of losses
    **_lorem(
        "lorem-last",
        "lorem, energies last",
        SMALL,
        {"learning_rate": 1e-2, **LAST},
    ),
    **_lorem(
        "lorem-forces",
        "lorem, energies last, scale by forces",
        SMALL,
        {"learning_rate": 1e-2, **LAST, **BY_FORCES},
    ),
    "lorem-lr-unaware": Model(
        "lorem",
        "lorem, long range, total charge not given",
        SMALL,
        SMALL_TRAINING,
        knows_total_charge=False,
    ),
    "lorem-head": Model(
        "lorem",
        "lorem, long range, charges predicted",
        SMALL,
        SMALL_TRAINING,
        predicts_charges=True,
    ),
    "lorem-last-head7": Model(
        "lorem",
        "lorem, energies last, 7 Å, charges predicted, 30 times their weight",
        SMALL | {"cutoff": 7.0},
        SMALL_TRAINING | LAST,
        predicts_charges=True,
        charge_factor=30.0,
    ),
    **_lorem("lorem-default", "lorem-default", {"cutoff": CUTOFF}, {"learning_rate": 5e-3}),
    **_peer("pet", "PET", "pet", PET_SMALL, {"batch_size": 8, "learning_rate": 1e-3, **CLIP}),
    **_backbone(
        "pet",
        "PET",
        {"name": "pet", "hypers": PET_SMALL},
        {"learning_rate": 1e-2, "backbone_learning_rate_factor": 0.1},
    ),
    **_peer(
        "soap-bpnn",
        "SOAP-BPNN",
        "soap_bpnn",
        SOAP_BPNN,
        {"batch_size": 8, "learning_rate": 1e-2},
    ),
    **_backbone(
        "soap-bpnn",
        "SOAP-BPNN",
        {"name": "soap_bpnn", "hypers": SOAP_BPNN},
        {"learning_rate": 1e-2},
    ),
    "mace": Model(
        "experimental.mace",
        "MACE",
        {"r_max": CUTOFF, "hidden_irreps": "32x0e + 32x1o", "max_ell": 3},
        {"batch_size": 8, "learning_rate": 1e-2, **CLIP},
    ),
}
"""Name on the command line -> model.

Peers have the hypers of their architecture but for cutoff and batch; PET and MACE are smaller. Of
the learning rates 1e-3 and 3e-3 for PET, 3e-3 and 1e-2 for SOAP-BPNN the better one after 24 s on
the dimers is taken, MACE's is its default.
"""

REFERENCE: dict[str, Model] = {
    "lorem-jax": Model(
        "lorem-jax",
        "lorem-jax",
        {key: x for key, x in SMALL.items() if key != "long_range"}
        | {"max_degree_lr": SMALL["long_range"]["max_degree"]},
        {
            # optimizer and schedule of its example; metatrain-lorem's are of the same kind
            "optimizer": "muon",
            "decay_style": "warmup_cosine",
            "start_learning_rate": 3e-3,
            "min_learning_rate": 0.0,
            # of squared errors of energies per atom and of components of forces, as everywhere here
            "loss_weights": {"energy": 1.0, "forces": 1.0},
        },
    ),
}
"""Trained by ``lorem_jax.py``, without metatrain: hypers and settings of lorem-jax, in the size of
``lorem-lr``. Of the learning rates 3e-3 and 1e-2 the one with the smaller product of errors is
taken, after 24 s on the dimers as above: 35 meV/atom and 200 meV/Å beside 57 and 157 on the
validation set."""

SHOWN = dict(sorted((MODELS | REFERENCE).items(), key=lambda item: not item[0].startswith("lorem")))
"""All of the report, those named lorem first."""


def architecture(model: Model, epochs: int, weights: dict, total_charge: bool) -> dict:
    """The section ``architecture`` of an options file.

    :param model: model
    :param epochs: number of epochs, in which the learning rate falls to zero
    :param weights: losses by target
    :param total_charge: whether the model is given one
    """
    hypers = dict(model.hypers)
    training = {
        **model.training,
        "num_epochs": epochs,
        # labels and neighbour lists by the process whose time is counted
        "num_workers": 0,
        "log_interval": 1,
        "best_model_metric": "rmse_prod",
        "loss": weights,
    }
    if model.architecture == "pet":
        hypers["system_conditioning"] = total_charge
    if model.architecture == "experimental.mace":
        # its wrapper has no cosine: to a hundredth
        training |= {"lr_scheduler": "ExponentialLR", "lr_scheduler_gamma": 0.01 ** (1 / epochs)}
    return {"name": model.architecture, "model": hypers, "training": training}
