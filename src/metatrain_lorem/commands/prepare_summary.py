"""What was found in a file by :func:`metatrain_lorem.commands.prepare.prepare`, in words."""

from dataclasses import dataclass, field

LARGEST_EXCESS = 0.1
"""Of sums of Born charges in e, as in training."""

SUM_TOLERANCE = 0.01
"""Largest difference in e between the sum of atomic charges and the total charge. Atomic charges
are written with at least three or four digits; a wrong total charge is off by far more."""


@dataclass
class Summary:
    """Numbers of structures."""

    structures: int = 0
    charges: int = 0
    """with atomic charges"""
    zero_initial_charges: int = 0
    """whose ``initial_charges`` are all zero, ASE's default, and not taken for labels"""
    dipoles: int = 0
    """with a dipole moment that was kept"""
    periodic_dipoles: int = 0
    """periodic ones whose dipole moment was left out"""
    total_charges: int = 0
    """with a total charge, given or rounded"""
    rounded: int = 0
    """whose total charge is the rounded sum of atomic charges"""
    born_charges: int = 0
    """with Born charges"""
    empty_born_charges: int = 0
    """whose Born charges are all NaN"""
    left_in_comment: list[str] = field(default_factory=list)
    """names of Born charges in comment lines that were left there, one per structure"""
    transposed: int = 0
    """whose Born charges had the polarisation first"""
    transposed_again: int = 0
    """of these, those that had the name that is written"""
    excesses: list[tuple[int, float]] = field(default_factory=list)
    """index, and largest difference in e of the sum of Born charges from the total charge times the
    unit matrix, of each structure that has all of them"""
    orders: int = 0
    """neutral molecules whose dipole moment tells the order of indices"""
    other_orders: int = 0
    """of these, those that tell the other one"""
    isotopes: int = 0
    """atoms of hydrogen with the mass of D or T"""
    sums: list[tuple[int, float, float]] = field(default_factory=list)
    """index, sum of atomic charges and total charge in e of each structure that has both"""

    def __str__(self) -> str:
        """A table with remarks below."""
        rows = [
            ("structures", self.structures),
            ("with atomic charges (atomic_charge)", self.charges),
            ("with dipole moment (dipole_moment)", self.dipoles),
            ("with total charge (charge)", self.total_charges),
        ]
        optional = [
            ("with Born charges", self.born_charges),
            ("Born charges all NaN: no labels", self.empty_born_charges),
            ("total charge: rounded sum", self.rounded),
            ("periodic: dipole moment left out", self.periodic_dipoles),
            ("initial_charges all zero: no labels", self.zero_initial_charges),
            ("atoms of D or T, written as H", self.isotopes),
        ]
        lines = [f"{name:<36} {count:>9}" for name, count in rows + [x for x in optional if x[1]]]
        if self.sums:
            differences = [abs(total - charge) for _, total, charge in self.sums]
            wrong = sum(difference > SUM_TOLERANCE for difference in differences)
            index, total, charge = self.sums[differences.index(max(differences))]
            lines.append(
                f"Atomic charges differ from the total charge by more than {SUM_TOLERANCE} e in "
                f"{wrong} of {len(self.sums)} structures; worst: structure {index} (counted from "
                f"0), sum {total:.5g} e, total charge {charge:.5g} e."
            )
        for name in sorted(set(self.left_in_comment)):
            lines.append(
                f"{name} stays in the comment line of {self.left_in_comment.count(name)} "
                "structures and is no label: it is not atoms x 9 numbers, or there is a column of "
                "that name."
            )
        if self.transposed:
            lines.append(
                f"The Born charges of {self.transposed} structures had the polarisation first and "
                "were transposed. Use --born-charge-order polarization-first once: the output has "
                "the displacement first."
            )
        if self.transposed_again:
            lines.append(
                f"{self.transposed_again} of these were called born_effective_charge already, as "
                "this command names what it writes: if the input is such an output, take the file "
                "it was made of."
            )
        if self.excesses:
            index, excess = max(self.excesses, key=lambda x: x[1])
            wrong = sum(x > LARGEST_EXCESS for _, x in self.excesses)
            lines.append(
                f"Sums of Born charges are off by more than {LARGEST_EXCESS} e, which training "
                f"refuses, in {wrong} of {len(self.excesses)} structures; worst: structure {index} "
                f"(counted from 0), {excess:.2g} e. They are written with the displacement first."
            )
        if 2 * self.other_orders > self.orders:
            lines.append(
                f"The dipole moments of {self.other_orders} of {self.orders} neutral molecules "
                "contradict this order of the indices, and agree with the transpose: use the other "
                "--born-charge-order."
            )
        elif self.orders:
            lines.append(
                f"The dipole moments of {self.orders - self.other_orders} of {self.orders} neutral "
                "molecules agree with this order of the indices."
            )
        missing = self.structures - self.total_charges
        if missing:
            lines.append(
                f"{missing} structures have no total charge: training takes 0. Give it as "
                "charge=... in the comment line, or round the sum of atomic charges with "
                "--total-charge-from-sum."
            )
        return "\n".join(lines)
