"""i-PI's metatomic driver with a total charge, boundaries, and charges and dipoles as extras.

The file needs i-PI, metatomic and vesin, but nothing else of this package. It may be copied next to
the input of i-PI, which names it as ``<pes_path>`` of a ``<ffdirect>`` whose ``<pes>`` is
``custom``, or be given to ``i-pi-py_driver -m custom -P``.
"""

import json

import numpy as np
import torch
from ipi.pes.metatomic import MetatomicDriver
from ipi.utils.units import unit_to_internal
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelEvaluationOptions, ModelOutput

__DRIVER_NAME__ = "lorem"
__DRIVER_CLASS__ = "LoremDriver"

DIPOLE = "mtt::dipole_moment"
POLARIZATION = "mtt::polarization"
BORN_CHARGE = "mtt::born_effective_charge"


class LoremDriver(MetatomicDriver):
    """Energy, forces and virial as of i-PI's own driver; as extras, where the model has them,
    ``charges`` ``[atoms]`` in e and, of isolated structures, ``dipole`` ``[3]`` in e Bohr; ``BEC``
    where it is asked for.

    :param template: file with the structure, for its elements
    :param model: exported model
    :param total_charge: in e, for models that take the total charge as an input
    :param pbc: whether the structure is periodic along each vector of the cell: ``TTT``, ``TTF``
        for a slab, ``FFF`` for an isolated molecule
    :param born_charges: whether to add the extra ``BEC`` [3N, 3] in e, derivatives of the
        polarisation (columns) with respect to positions (rows), as driven dynamics in a field
        needs: the output ``mtt::born_effective_charge``, or, of models without it, derivatives of
        the dipole moment of isolated structures
    :param arguments: as of i-PI's driver
    :raises ValueError: if the model needs a total charge and none is given, or one is given and it
        takes none; for parameters that can't be read; for Born charges of a model that has none
    """

    def __init__(
        self, template, model, total_charge=None, pbc="TTT", born_charges=False, **arguments
    ):
        letters = str(pbc).strip().upper()
        if len(letters) != 3 or not set(letters) <= set("TF"):
            raise ValueError(
                f"pbc: '{pbc}' is not three letters T or F, one for each vector of the cell"
            )
        self.periodic = [letter == "T" for letter in letters]
        self.model_path = model
        try:
            self.total_charge = None if total_charge is None else float(total_charge)
        except ValueError as error:
            raise ValueError(f"total_charge: '{total_charge}' is not a number, in e") from error
        if str(born_charges).lower() not in ("true", "false"):
            raise ValueError(f"born_charges: '{born_charges}' is neither True nor False")
        self.born_charges = str(born_charges).lower() == "true"
        super().__init__(template, model, **arguments)

    def check_parameters(self):
        """Load the model and check the parameters against it."""
        super().check_parameters()
        requested = "charge" in self.model.requested_inputs(use_new_names=True)
        if requested and self.total_charge is None:
            raise ValueError(
                f"{self.model_path} needs the total charge of the structure: add `total_charge: 0`,"
                " or another value in e, to the parameters of the driver"
            )
        if not requested and self.total_charge is not None:
            raise ValueError(
                f"total_charge: {self.model_path} takes no total charge; remove it from the "
                "parameters of the driver, and build another into the model with "
                "`python -m metatrain_lorem set-charge` if need be"
            )
        if self.born_charges and not {DIPOLE, BORN_CHARGE} & set(self.evaluation_options.outputs):
            raise ValueError(
                f"born_charges: needs a model with the output {BORN_CHARGE}, or {DIPOLE} and `pbc: "
                f"FFF`; {self.model_path} has {sorted(self.model.capabilities().outputs)}"
            )

    def _register_model_outputs(self):
        super()._register_model_outputs()
        outputs = self.evaluation_options.outputs
        known = self.model.capabilities().outputs
        if "charge" in known:
            outputs["charge"] = ModelOutput(unit="e", sample_kind="atom")
        isolated = not any(self.periodic)
        for name in (DIPOLE, POLARIZATION):
            if name in known and isolated and not {DIPOLE, POLARIZATION} & set(outputs):
                outputs[name] = ModelOutput(unit="e*Bohr", sample_kind="system")
        if self.born_charges and BORN_CHARGE in known:
            outputs[BORN_CHARGE] = ModelOutput(unit="e", sample_kind="atom")
        self.evaluation_options = ModelEvaluationOptions(length_unit="Angstrom", outputs=outputs)

    def _prepare_system(self, cell, pos, model=None, device=None):
        # the columns are vectors; the driver takes those of length zero as not periodic
        cell = np.where(self.periodic, cell, 0.0)
        system, strain = super()._prepare_system(cell, pos, model, device)
        if self.total_charge is not None:
            charge = torch.tensor([[self.total_charge]], dtype=self._dtype)
            block = TensorBlock(
                charge,
                Labels(["system"], torch.tensor([[0]])),
                [],
                Labels(["charge"], torch.tensor([[0]])),
            )
            data = TensorMap(Labels(["_"], torch.tensor([[0]])), [block])
            system.add_data("charge", data.to(system.device))
        return system, strain

    def _process_outputs(self, outputs, systems, strains, model=None):
        # before the graph is gone
        more = [{} for _ in systems]
        if "charge" in outputs:
            block = outputs["charge"].block()
            indices = block.samples.column("system")
            for i, extras in enumerate(more):
                extras["charges"] = block.values[indices == i].flatten().tolist()
        for name in (DIPOLE, POLARIZATION):
            if name in outputs:
                dipoles = outputs[name].block().values.reshape(-1, 3)
                for dipole, system, extras in zip(dipoles, systems, more, strict=True):
                    extras["dipole"] = dipole.tolist()
                    if self.born_charges and BORN_CHARGE not in outputs:
                        extras["BEC"] = self._born_charges(dipole, system.positions)
        if BORN_CHARGE in outputs:
            block = outputs[BORN_CHARGE].block()
            indices = block.samples.column("system")
            for i, extras in enumerate(more):
                extras["BEC"] = block.values[indices == i].reshape(-1, 3).tolist()
        results = super()._process_outputs(outputs, systems, strains, model)
        return [
            (energy, force, virial, json.dumps({**json.loads(extras), **new}))
            for (energy, force, virial, extras), new in zip(results, more, strict=True)
        ]

    def _born_charges(self, dipole, positions):
        """Derivatives of a dipole in e Bohr by positions in Å.

        :return: rows of ``BEC``, e
        """
        columns = [
            torch.autograd.grad(component, positions, retain_graph=True)[0].flatten()
            for component in dipole
        ]
        per_angstrom = torch.stack(columns, dim=1).cpu().numpy()
        return (per_angstrom / unit_to_internal("length", "angstrom", 1.0)).tolist()
