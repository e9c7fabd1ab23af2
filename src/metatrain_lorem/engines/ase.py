"""ASE's calculator of exported models with a uniform electric field."""

from collections.abc import Iterator
from contextlib import contextmanager
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
        self._arguments, self._options = arguments, options
        self._model = _InField(self._model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FieldCalculator":
        """A calculator of its own, made anew: that of metatomic can't be copied."""
        return type(self)(*self._arguments, **self._options)

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
            with self._model.attached([field]):
                super().calculate(atoms, properties, system_changes)
            return
        undefined = set(properties) - {"forces"}
        if undefined:
            raise PropertyNotImplementedError(
                f"{', '.join(sorted(undefined))} of a periodic structure in an electric field: "
                "only forces are defined there (get_forces), to first order in the field"
            )
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

    def run_model(
        self, atoms: ase.Atoms | list[ase.Atoms], *arguments: Any, **options: Any
    ) -> dict[str, TensorMap]:
        """As of ``MetatomicCalculator``, each structure in its own field.

        :param atoms: structures to be evaluated
        :param arguments: as of ``MetatomicCalculator``
        :return: outputs of the model
        :raises ValueError: for a field that is not three numbers, or a model that knows none
        :raises PropertyNotImplementedError: for periodic structures in a field
        """
        with self._model.attached(self._fields(atoms)):
            return super().run_model(atoms, *arguments, **options)

    def compute_energy(
        self, atoms: ase.Atoms | list[ase.Atoms], *arguments: Any, **options: Any
    ) -> dict[str, Any]:
        """As of ``MetatomicCalculator``, each structure in its own field.

        :param atoms: structures to be evaluated
        :param arguments: as of ``MetatomicCalculator``
        :return: energies, and forces if they are asked for
        :raises ValueError: for a field that is not three numbers, or a model that knows none
        :raises PropertyNotImplementedError: for periodic structures in a field
        """
        with self._model.attached(self._fields(atoms)):
            return super().compute_energy(atoms, *arguments, **options)

    def _fields(self, atoms: ase.Atoms | list[ase.Atoms]) -> list[np.ndarray | None]:
        """Of isolated structures, in V/Å, None where there is none."""
        structures = [atoms] if isinstance(atoms, ase.Atoms) else atoms
        fields = [self._field(structure) for structure in structures]
        for i, (structure, field) in enumerate(zip(structures, fields, strict=True)):
            if field is not None and structure.pbc.any():
                raise PropertyNotImplementedError(
                    f"structure {i} is periodic and has info['{FIELD}']: only forces are defined "
                    f"there (get_forces). Remove info['{FIELD}'] for outputs without the field"
                )
        return fields

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
                + (
                    "need Born charges"
                    if atoms.pbc.any()
                    else "need charge_equilibration or long_range.energy: charges"
                )
            )
        return field


class _InField:
    """A model that attaches fields to the structures it is called with."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.fields: list[np.ndarray | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    @contextmanager
    def attached(self, fields: list[np.ndarray | None]) -> Iterator[None]:
        """
        :param fields: of the structures of the next call, V/Å, None for none
        """
        self.fields = fields
        try:
            yield
        finally:
            # whatever happened: the next structures are not in these fields
            self.fields = []

    def __call__(self, systems: list[System], *arguments: Any, **options: Any) -> Any:
        if all(field is None for field in self.fields):
            return self.model(systems, *arguments, **options)
        for system, field in zip(systems, self.fields, strict=True):
            if field is not None:
                system.add_data("mtt::electric_field", _field_data(field, system))
        try:
            return self.model(systems, *arguments, **options)
        except torch.jit.Error as error:
            # the last line of TorchScript's traceback is the model's own message
            message = str(error).strip().rpartition("builtins.ValueError: ")[2]
            raise ValueError(message) from error


def _field_data(field: np.ndarray, system: System) -> TensorMap:
    """As the model takes it."""
    device = system.device
    block = TensorBlock(
        torch.tensor(field).to(system.positions).reshape(1, 3, 1),
        Labels(["system"], torch.tensor([[0]])).to(device),
        [Labels(["xyz"], torch.arange(3).reshape(-1, 1)).to(device)],
        Labels(["electric_field"], torch.tensor([[0]])).to(device),
    )
    return TensorMap(Labels(["_"], torch.tensor([[0]])).to(device), [block])
