"""The data files of a run of ``mtt train``, read so that nothing is dropped in silence.

metatrain reads a file once for each quantity. When it cannot read the forces or the stress of one
structure, it leaves out those of all; other faults end in messages of the libraries below. In
runs of ours, its reader gets the structures from here: read once, checked, missing gradients
marked by NaN, which the loss leaves out. Other formats than ASE's are left to metatrain.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metatrain.utils.data import load_indices
from metatrain.utils.data.readers import ase as ase_reader
from metatrain.utils.data.target_info import get_energy_target_info
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch.utils.data import Dataset, Subset

from ..extxyz import read_one_by_one, with_full_tensors
from .file_sections import Frames, Section, SectionCheck, uses_ase

SPLITS = ("training", "validation", "test")


@dataclass
class Run:
    """Data of a run, as far as metatrain has read them."""

    options: DictConfig
    sections: list[Section]
    num_read: int = 0
    gradients: dict[str, set[str]] = field(default_factory=dict)
    """of each target in some training set"""

    def section_of(self, dataset: Dataset) -> Section | None:
        """
        :param dataset: any, possibly a subset
        :return: the section that its structures were read from
        """
        base = whole(dataset)
        return next((s for s in self.sections if s.dataset is base), None)

    def test_sets(self, train_datasets: list[Dataset]) -> list[Dataset]:
        """
        :param train_datasets: training sets of this run, after all splits
        :return: test sets, which metatrain does not hand to trainers
        """
        chosen = self.options.get("test_set", 0.0)
        if isinstance(chosen, (int, float)):
            if chosen == 0:
                return []
            # what the last split has not left in the training set
            return [
                Subset(part.dataset, sorted(set(range(len(part.dataset))) - set(part.indices)))
                for part in train_datasets
            ]
        if _only_indices(chosen):
            return [Subset(whole(train_datasets[0]), load_indices(chosen["indices"]))]
        return [
            Subset(s.dataset, load_indices(s.written["indices"]))
            if isinstance(s.written, DictConfig) and "indices" in s.written
            else s.dataset
            for s in self.sections
            if s.split == "test"
        ]


_run: Run | None = None


def begin_run(options: dict[str, Any]) -> None:
    """
    :param options: of ``mtt train``, before metatrain adds defaults
    """
    global _run
    config = OmegaConf.create(options)
    sections = []
    for split in SPLITS:
        section = config.get(f"{split}_set", 0.0)
        if isinstance(section, (int, float)) or _only_indices(section):
            continue
        elements = section if isinstance(section, ListConfig) else [section]
        for number, element in enumerate(elements):
            sections.append(Section(split, number if len(elements) > 1 else None, element))
    _run = Run(config, sections)


def take_run(train_datasets: list[Dataset]) -> Run | None:
    """The data of the run that a trainer belongs to, once.

    :param train_datasets: training sets of the trainer
    :return: None for trainers that were not started by ``mtt train``
    """
    global _run
    run, _run = _run, None
    if run is None or any(run.section_of(dataset) is None for dataset in train_datasets):
        return None
    return run


def read(get_dataset: Callable, options: DictConfig) -> tuple[Dataset, dict, dict]:
    """
    :param get_dataset: of metatrain, reads a section of files
    :param options: the section, with defaults
    :return: what ``get_dataset`` returns, without gaps in gradients
    :raises ValueError: for data that cannot be used, with file, structure and key
    """
    run = _run
    section = run.sections[run.num_read]
    run.num_read += 1
    known = None if section.split == "training" else run.gradients
    equilibrated = OmegaConf.select(run.options, "architecture.model.charge_equilibration.enable")
    section.dataset, targets, extra_data = read_section(
        get_dataset, section, options, known, bool(equilibrated)
    )
    if section.split == "training":
        for name, info in targets.items():
            gradients = run.gradients.setdefault(name, set())
            gradients.update(info.gradients)
            # metatrain takes the description of the last set, which may have fewer
            if gradients > set(info.gradients):
                targets[name] = get_energy_target_info(
                    name, options["targets"][name], "positions" in gradients, "strain" in gradients
                )
    return section.dataset, targets, extra_data


def read_section(
    get_dataset: Callable,
    section: Section,
    options: DictConfig,
    trained: dict[str, set[str]] | None = None,
    equilibrated: bool = False,
) -> tuple[Dataset, dict, dict]:
    """
    :param get_dataset: of metatrain, reads a section of files
    :param section: which one
    :param options: the section, with defaults
    :param trained: gradients to read for each target; by default those that the options ask for
    :param equilibrated: whether all elements must have charges
    :return: what ``get_dataset`` returns, without gaps in gradients
    :raises ValueError: for data that cannot be used, with file, structure and key
    """
    section.path = options["systems"]["read_from"]
    reader = StructureReader(ase_reader.read)
    if uses_ase(options["systems"]):
        check = SectionCheck(section, options, reader, trained)
        check.check_elements(equilibrated)
        options = check.run()
    ase_reader.read = reader
    try:
        return get_dataset(options)
    finally:
        ase_reader.read = reader.original


class StructureReader:
    """Takes the place of metatrain's function of that name while a section is read.

    :param original: that function
    """

    def __init__(self, original: Callable) -> None:
        self.original = original
        self.files: dict[str, Frames] = {}

    def __call__(self, filename: Any, *args: Any, **kwargs: Any) -> Frames:
        """
        :param filename: path; the other arguments are metatrain's, which reads whole files only
        :return: its structures, the same objects in each call
        :raises ValueError: for a file that ASE cannot read
        """
        if filename not in self.files:
            frames = _read_structures(self.original, str(filename))
            for frame in frames:
                # metatrain stumbles if some structures lack them, and no model of ours has a use
                frame.arrays.pop("momenta", None)
            self.files[filename] = frames
        return self.files[filename]


def _read_structures(read: Callable, path: str) -> Frames:
    try:
        return read(path, ":")
    except ValueError:
        if Path(path).suffix not in (".xyz", ".extxyz") or not Path(path).is_file():
            raise

    def read_text(text: str) -> Frames:
        return read(io.StringIO(with_full_tensors(text)), ":", format="extxyz")

    return read_one_by_one(path, read_text)


def whole(dataset: Dataset) -> Dataset:
    """
    :param dataset: data set, possibly a subset of a subset
    :return: the data set as read from its files
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def _only_indices(section: Any) -> bool:
    return isinstance(section, DictConfig) and "indices" in section and "systems" not in section
