"""What a fit may learn from and what it is scored on: whole places held out, polygons capped, classes shuffled.

Two samples share a group when they share a polygon or a place (transitively), because neighbouring pixels see the same
ground through the encoder's window and a random split would score memory instead of skill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from numpy.typing import NDArray

    Fold = tuple[NDArray[np.int64], NDArray[np.int64]]

Label = TypeVar("Label", np.int64, np.float64)
CONTROLS = 3
"""Permutations that the control averages over."""


def components(polygons: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cross-validation group of every sample: samples that share a polygon or a place, transitively.

    >>> components(np.array([0, 0, 1, 2]), np.array([5, 6, 6, 7])).tolist()
    [0, 0, 0, 1]
    """
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    left, right = (np.unique(a, return_inverse=True)[1] for a in (polygons, places))
    size = int(left.max()) + 1
    nodes = size + int(right.max()) + 1
    graph = coo_array((np.ones(len(left)), (left, right + size)), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1][left], dtype=np.int64)


def grouped_folds(
    y: NDArray[np.int64], component: NDArray[np.int64], *, names: tuple[str, ...], seed: int, most: int = 5
) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    """Split samples into folds that keep components whole and class shares alike.

    As many folds as the rarest class has components, at most ``most``. A class of a single component cannot be held out
    and learned at once: its samples only train. With fewer than two other classes there are no folds.

    Returns:
        ((train, test) sample indices of every fold, notes for the reader of the scores).
    """
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415

    places = [len(np.unique(component[y == k])) for k in range(len(names))]
    notes = [
        f"class {names[k]!r} comes from {n} place: it is learned but not validated; label it in more places"
        for k, n in enumerate(places)
        if n == 1
    ]
    testable = np.flatnonzero(np.array(places) >= 2)
    if len(testable) < 2:
        return (), (*notes, "not validated: fewer than two classes were labelled in two or more separate places")
    inside = np.flatnonzero(np.isin(y, testable))
    count = min(most, *(places[k] for k in testable))
    if count < most:
        rare = [names[k] for k in testable if places[k] == count]
        notes.append(f"{count} folds only: {', '.join(rare)} labelled in {count} separate places")
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    folds: list[Fold] = []
    for _, test in splitter.split(inside, y[inside], component[inside]):
        train = np.flatnonzero(~np.isin(component, component[inside[test]]))
        missing = np.setdiff1d(y[inside[test]], y[train])
        if len(test) == 0 or len(np.unique(y[train])) < 2:
            notes.append("a fold was left out: what remains without it holds fewer than two classes")
            continue
        if len(missing):
            notes.append(f"a fold tests {', '.join(names[k] for k in missing)} without having seen it: scores are low")
        folds.append((train, inside[test]))
    return tuple(folds), tuple(notes)


def integers(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """Equal keys become equal numbers, in order of appearance.

    >>> integers(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def capped(groups: Sequence[Hashable], *, seed: int, per_polygon: int, total: int) -> tuple[NDArray[np.int64], int]:
    """(sorted indices of the samples to use, the cap): a seeded draw, at least one sample of every polygon."""
    polygon = integers(groups)
    order = np.lexsort((np.random.default_rng(seed).random(len(polygon)), polygon))
    counts = np.bincount(polygon)
    rank = np.arange(len(polygon)) - np.repeat(np.cumsum(counts) - counts, counts)
    cap = per_polygon
    while cap > 1 and np.minimum(counts, cap).sum() > total:
        cap -= 1
    return np.sort(order[rank < cap]), cap


def cap_note(before: int, after: int, cap: int) -> tuple[str, ...]:
    """What to tell about the cap, nothing where it left all."""
    if after == before:
        return ()
    return (f"{after} of {before} labelled pixels used: at most {cap} per polygon, drawn at random",)


def permuted(y: NDArray[Label], polygons: NDArray[np.int64], *, seed: int) -> Iterator[NDArray[Label]]:
    """Labels of samples with those of whole polygons exchanged at random, ``CONTROLS`` times."""
    _, first, inverse = np.unique(polygons, return_index=True, return_inverse=True)
    for control in range(CONTROLS):
        yield np.random.default_rng([seed, control]).permutation(y[first])[inverse]
