"""Total charges: what a batch gets, and what is said about the data."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System
from metatrain.utils.data.target_info import get_generic_target_info
from metatrain.utils.system_data import get_system_data_transform

from metatrain_lorem.training.distributed import Processes
from metatrain_lorem.training.total_charges import (
    TotalChargeCheck,
    check_layout,
    fill_missing,
    warn_of_outliers,
)

PROCESSES = Processes(torch.device("cpu"))


def hydrogen(number: int) -> list[System]:
    return [
        System(
            torch.ones(1, dtype=torch.int32),
            torch.zeros(1, 3, dtype=torch.float64),
            torch.zeros(3, 3, dtype=torch.float64),
            torch.tensor([False] * 3),
        )
        for _ in range(number)
    ]


def per_system(charges, indices=None) -> TensorMap:
    values = torch.tensor(charges, dtype=torch.float64).reshape(-1, 1)
    indices = torch.tensor(indices or range(len(charges))).reshape(-1, 1)
    block = TensorBlock(values, Labels(["system"], indices), [], Labels.range("charge", 1))
    return TensorMap(Labels.single(), [block])


def per_atom(charges) -> TensorMap:
    values = torch.tensor(charges, dtype=torch.float64).reshape(-1, 1)
    samples = torch.tensor([[3, atom] for atom in range(len(charges))])
    labels = Labels(["system", "atom"], samples)
    block = TensorBlock(values, labels, [], Labels.range("atomic_charge", 1))
    return TensorMap(Labels.single(), [block])


def info(**changes):
    section = {
        "quantity": "",
        "unit": "",
        "type": "scalar",
        "sample_kind": "system",
        "num_subtargets": 1,
        "description": "",
        **changes,
    }
    return get_generic_target_info("charge", section)


def check(reads_data=True, default=0.0, split="training", has_labels=True) -> TotalChargeCheck:
    return TotalChargeCheck(split, default, reads_data, has_labels)


@pytest.mark.parametrize(
    "extra_data, expected",
    [
        ({"charge": per_system([1.0, math.nan, -2.5], [7, 2, 5])}, [1.0, 0.0, -2.5]),
        ({"charge": per_system([math.nan] * 3)}, [0.0] * 3),
        ({}, [0.0] * 3),
    ],
)
def test_each_structure_of_a_batch_gets_a_total_charge(extra_data, expected):
    other = per_system([1.0, 2.0, 3.0])
    before = {name: value.copy() for name, value in extra_data.items()}
    batch = fill_missing(hydrogen(3), {"energy": other}, {**extra_data, "mask": other})
    systems, targets, extra = get_system_data_transform(["charge"])(*batch)
    charges = [system.get_data("charge").block().values for system in systems]
    assert [charge.item() for charge in charges] == expected
    assert all(charge.shape == (1, 1) and charge.dtype == torch.float64 for charge in charges)
    assert targets == {"energy": other} and extra["mask"] is other
    # the data set keeps what it had
    for name, value in extra_data.items():
        old = before[name].block().values
        assert torch.equal(value.block().values.isnan(), old.isnan())


def test_layout():
    check_layout(info())
    vector = {"cartesian": {"rank": 1}}
    for changes in ({"sample_kind": "atom"}, {"num_subtargets": 2}, {"type": vector}):
        with pytest.raises(ValueError, match="extra_data: charge is the total charge, one number"):
            check_layout(info(**changes))


def test_range_and_missing_total_charges(caplog):
    caplog.set_level(logging.INFO)
    looked = check(split="validation")
    for index, charge in enumerate([2.0, math.nan, 0.5]):
        looked.add({"charge": per_system([charge])}, index)
    looked.add({}, 3)
    assert looked.finish(PROCESSES) == (0.0, 2.0)
    assert caplog.messages == [
        "Total charge: 2 of 4 structures in the validation set have none (missing or NaN) and "
        "count as 0"
    ]


def test_infinite_total_charge():
    with pytest.raises(ValueError, match="^Structure 8 of the training set .* infinite"):
        check().add({"charge": per_system([-math.inf])}, 8)


def test_atomic_charges_that_do_not_sum_to_the_total_charge(caplog):
    caplog.set_level(logging.INFO)
    looked = check()
    samples = [
        (1.0, [0.4, 0.609]),  # less than 0.01 e off
        (-1.0, [-0.4, -0.58]),  # 0.02 e off
        (math.nan, [-0.4, -0.35]),  # counts as neutral
        (1.0, [0.5, math.nan]),  # not all labels are known
    ]
    for index, (total, charges) in enumerate(samples):
        fields = {"charge": per_system([total]), "mtt::atomic_charge": per_atom(charges)}
        looked.add(fields, 10 + index)
    looked.add({"charge": per_system([3.0])}, 14)
    looked.finish(PROCESSES)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == [
        "The labels of 'mtt::atomic_charge' do not sum to the total charge within 0.01 e in 2 of "
        "3 structures of the training set. The worst is structure 12 (index in the data file): sum "
        "-0.7500 e, total charge 0 e."
    ]


@pytest.mark.parametrize("default, number", [(0.0, 1), (1.0, 0), (None, 0)])
def test_atomic_charges_where_no_total_charge_is_read(caplog, default, number):
    """Charge equilibration without total charges in the data: that of the model."""
    looked = check(reads_data=False, default=default)
    fields = {"mtt::atomic_charge": per_atom([0.4, 0.6]), "charge": per_system([5.0])}
    looked.add(fields, 0)
    expected = (math.inf, -math.inf) if default is None else (default, default)
    assert looked.finish(PROCESSES) == expected
    assert len(caplog.messages) == number


def test_processes_put_together_what_they_found(caplog):
    caplog.set_level(logging.INFO)
    looked = [check(), check()]
    wrong = {"mtt::atomic_charge": per_atom([0.5])}
    looked[0].add({"charge": per_system([-1.0]), **wrong}, 4)
    looked[1].add({"charge": per_system([2.0]), **wrong}, 5)
    looked[1].add({**wrong}, 6)
    results = []
    for one in looked:
        caplog.clear()
        results.append((one.finish(SimpleNamespace(gather=lambda value: looked)), caplog.messages))
    assert results[0] == results[1]
    assert results[0][0] == (-1.0, 2.0)
    missing, different = results[0][1]
    assert "1 of 3 structures" in missing
    assert "3 of 3 structures" in different
    # both are 1.5 e off: the later one is named
    assert "structure 5 " in different


@pytest.mark.parametrize(
    "others, limit",
    [([0, 0, 0, 0, 1, -1], 10), ([2, 2, 2, 2], 10), ([-1, -1, 0, 0, 1, 1], 20)],
)
def test_limit_of_outliers(caplog, others, limit):
    """As the documentation has it: 10 (1 e + median distance) from the median."""
    middle = 2 if 2 in others else 0
    for sign in (1, -1):
        for distance, named in [(limit - 0.1, False), (limit + 0.1, True)]:
            caplog.clear()
            # enough others to leave the median where it is
            charges = [*others, *others, middle + sign * distance]
            warn_of_outliers([(float(x), i) for i, x in enumerate(charges)], "training")
            text = f"1 total charges in the training set are more than {limit} e from the median"
            assert (text in caplog.text) == named, (sign, distance)
    assert f"of structure {len(charges) - 1} (index" in caplog.text
