"""Data sets: their indices, shares for processes, and parts without missing labels."""

from typing import Any

from metatensor.learn.data._namedtuple import namedtuple
from metatrain.utils.data import TargetInfo
from torch.utils.data import Dataset, Subset


def structure_index(dataset: Dataset, i: int) -> int:
    """
    :param dataset: data set, possibly a subset of a subset
    :param i: index in it
    :return: index in the data set as read from its file
    """
    while isinstance(dataset, Subset):
        i = dataset.indices[i]
        dataset = dataset.dataset
    return int(i)


def split_indices(dataset: Dataset) -> list[list[int]]:
    """
    :param dataset: data set, possibly a subset of a subset
    :return: the indices chosen by each subset, outermost first
    """
    indices = []
    while isinstance(dataset, Subset):
        indices.append([int(i) for i in dataset.indices])
        dataset = dataset.dataset
    return indices


def share(datasets: list[Dataset], rank: int, size: int) -> list[Dataset]:
    """Every ``size``-th structure of each data set: disjoint shares that cover everything once.

    :param datasets: the same on all processes
    :param rank: number of this process
    :param size: number of processes
    :return: the non-empty shares
    """
    shares = [Subset(dataset, range(rank, len(dataset), size)) for dataset in datasets]
    return [part for part in shares if len(part) > 0]


class SomeFields(Dataset):
    """Some structures of a data set, with some of its fields.

    :param dataset: the data set
    :param indices: indices of the structures
    :param fields: names of the fields
    """

    def __init__(self, dataset: Dataset, indices: list[int], fields: tuple[str, ...]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.sample_class = namedtuple("Sample", list(fields))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        fields = self.dataset[self.indices[i]]._asdict()
        return self.sample_class(*(fields[name] for name in self.sample_class._fields))


def without_missing(datasets: list[Dataset], targets: dict[str, TargetInfo]) -> list[Dataset]:
    """Leave out the targets of a structure that have missing labels.

    metatrain's least-squares fit of the baseline would turn into NaN as a whole.

    :param datasets: data sets
    :param targets: targets of the model
    :return: data sets in each of which all structures have the same targets, without gaps
    """
    complete: list[Dataset] = []
    for dataset in datasets:
        groups: dict[tuple[str, ...], list[int]] = {}
        for i in range(len(dataset)):
            fields = dataset[i]._asdict()
            names = tuple(
                name
                for name, value in fields.items()
                if name not in targets or not any(b.values.isnan().any() for b in value.blocks())
            )
            groups.setdefault(names, []).append(i)
        complete += [SomeFields(dataset, indices, names) for names, indices in groups.items()]
    return complete
