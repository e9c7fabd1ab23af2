"""ASE's calculator of exported models with a uniform electric field."""

from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, System
from metatomic_ase import MetatomicCalculator

FIELD = "electric_field"
BORN_CHARGE = "mtt::born_effective_charge"
POLARIZABILITY = "mtt::polarizability"


class FieldCalculator(MetatomicCalculator):
    """``MetatomicCalculator`` that knows ``atoms.info["electric_field"]``, three numbers in V/Å.

    Isolated structures: the charges answer to the field, and the energy contains that of charges in
    it, :math:`-E \\cdot \\sum_i q_i r_i`, zero at the origin of the coordinates; forces are its
    derivatives. Periodic structures and slabs have no energy in a field; their forces are those
    without it plus Born charges times the field.

    :param arguments: as of ``MetatomicCalculator``
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._model = _InField(self._model)

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """
        :param atoms: structure to be evaluated
        :param tol: see ASE
        :return: what changed since the last evaluation, the field among it
        """
        changes = super().check_state(atoms, tol=tol)
        if self.atoms is not None:
            old, new = (np.asarray(x.info.get(FIELD, 0.0)) for x in (self.atoms, atoms))
            if not np.array_equal(old, new):
                changes.append(FIELD)
        return changes

    def calculate(self, atoms: ase.Atoms, properties: list[str], system_changes: list[str]) -> None:
        """See ASE.

        :param atoms: structure to be evaluated
        :param properties: what to evaluate
        :param system_changes: what changed since the last evaluation
        :raises ValueError: for a field that is not three numbers, or a model that knows none
        :raises PropertyNotImplementedError: for the energy of a periodic structure in a field, and
            what is made of it besides forces
        """
        field = self._field(atoms)
        if field is None or not atoms.pbc.any():
            self._model.field = field
            super().calculate(atoms, properties, system_changes)
            return
        undefined = set(properties) - {"forces"}
        if undefined:
            raise PropertyNotImplementedError(
                f"{', '.join(sorted(undefined))} of a periodic structure in an electric field: "
                "only forces are defined there (get_forces), to first order in the field"
            )
        self._model.field = None
        requests = self._additional_output_requests
        self._additional_output_requests = {
            **requests,
            BORN_CHARGE: ModelOutput(unit="e", sample_kind="atom"),
        }
        try:
            super().calculate(atoms, properties, system_changes)
        finally:
            self._additional_output_requests = requests
        born = self.additional_outputs[BORN_CHARGE].block().values.detach()[..., 0]
        forces = self.results["forces"] + born.cpu().double().numpy() @ field
        # what was evaluated along with the forces does not belong to them
        self.results = {"forces": forces}

    def _field(self, atoms: ase.Atoms) -> np.ndarray | None:
        """In V/Å, None if there is none."""
        if FIELD not in atoms.info:
            return None
        try:
            field = np.asarray(atoms.info[FIELD], dtype=float)
        except (TypeError, ValueError):
            field = np.zeros(0)
        if field.shape != (3,) or not np.isfinite(field).all():
            raise ValueError(
                f"atoms.info['{FIELD}'] must be three finite numbers in V/Å, it is "
                f"{atoms.info[FIELD]!r}"
            )
        if not field.any():
            return None
        needed = BORN_CHARGE if atoms.pbc.any() else POLARIZABILITY
        if needed not in self._model.capabilities().outputs:
            raise ValueError(
                f"atoms.info['{FIELD}'] is given, but the model has no output '{needed}': fields "
                + ("need Born charges" if atoms.pbc.any() else "need charge_equilibration")
            )
        return field


class _InField:
    """A model that attaches a field to the structures it is called with."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.field: np.ndarray | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def __call__(self, systems: list[System], *arguments: Any, **options: Any) -> Any:
        if self.field is not None:
            for system in systems:
                values = torch.tensor(self.field).to(system.positions).reshape(1, 3, 1)
                block = TensorBlock(
                    values,
                    Labels(["system"], torch.tensor([[0]])).to(system.device),
                    [Labels(["xyz"], torch.arange(3).reshape(-1, 1)).to(system.device)],
                    Labels(["electric_field"], torch.tensor([[0]])).to(system.device),
                )
                keys = Labels(["_"], torch.tensor([[0]])).to(system.device)
                system.add_data("mtt::electric_field", TensorMap(keys, [block]))
        return self.model(systems, *arguments, **options)
