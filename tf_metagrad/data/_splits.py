"""Classes divided into splits: by name, or by shares of a shuffled list."""

from collections.abc import Mapping, Sequence

import numpy as np

from tf_metagrad.data import _episodes

Splits = Mapping[str, float] | Mapping[str, Sequence[str]]
SHARES = {"train": 0.64, "validation": 0.16, "test": 0.2}  # those of mini-ImageNet


def choose(names: Sequence[str], split: str, splits: Splits, seed: int) -> list[str]:
    """Returns the classes of a split; no two splits share one.

    Args:
        names: all classes; their order does not matter.
        split: a name among those of `splits`.
        splits: for every split the names of its classes; or its share of all classes, of which they then take that
            many in the order of a shuffled list. Classes may be left over.
        seed: names the order of the list.

    Raises:
        ValueError: the splits do not fit together or to the classes; the message says what to change.

    Example:
        >>> choose(["a", "b", "c", "d"], "test", {"train": 0.5, "test": 0.25}, seed=0)
        ['b']
        >>> choose(["a", "b", "c", "d"], "test", {"train": ["a", "d"], "test": ["c", "b"]}, seed=0)
        ['b', 'c']
    """
    if not isinstance(splits, Mapping) or not splits:
        raise ValueError(
            f"splits is {str(splits)[:80]!r}, expected a dict from a split's name to its share of the classes, or to "
            'their names: pass {"train": 0.8, "test": 0.2}, say.'
        )
    _episodes.check_choice("split", split, tuple(splits))
    if all(isinstance(share, int | float) and not isinstance(share, bool) for share in splits.values()):
        return _by_share(names, split, splits, seed)
    _check_names(names, splits)
    return sorted(splits[split])


def _by_share(names: Sequence[str], split: str, shares: Mapping[str, float], seed: int) -> list[str]:
    bounds = np.cumsum([0, *shares.values()])
    if not all(0 < share <= 1 for share in shares.values()) or bounds[-1] > 1 + 1e-9:
        raise ValueError(
            f"splits is {dict(shares)}, expected shares above 0 that add up to at most 1: lower or raise some."
        )
    _episodes.check_sizes(split_seed=seed)
    shuffled = np.random.RandomState(seed).permutation(len(names))  # the NumPy generator whose stream is frozen
    place = list(shares).index(split)
    first, end = np.round(bounds[place : place + 2] * len(names)).astype(int)
    ordered = sorted(names)
    return sorted(ordered[k] for k in shuffled[first:end])


def _check_names(names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> None:
    seen = {}
    for split, classes in splits.items():
        if isinstance(classes, str | int | float) or not all(isinstance(name, str) for name in classes):
            raise ValueError(
                f"splits[{split!r}] is {str(classes)[:80]!r}, expected a list of names of classes: give lists, or "
                "shares, to all of the splits."
            )
        for name in classes:
            if name not in names:
                shown = ", ".join(map(repr, sorted(names)))[:200]
                raise ValueError(
                    f"splits[{split!r}] names the class {name!r}, expected one of {shown}: correct the name."
                )
            if seen.setdefault(name, split) != split:
                raise ValueError(
                    f"splits gives the class {name!r} to {seen[name]!r} and to {split!r}, expected splits that share "
                    "no class: take it out of one."
                )
