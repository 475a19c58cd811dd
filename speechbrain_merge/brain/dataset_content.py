"""What a set of data holds, and what is made of its rows, whatever wraps it.

A recipe may select on a part of a set (``torch.utils.data.Subset``,
``random_split``), on several sets in a row (``ConcatDataset``), or on a set of a
class of its own. All of them count by the rows that are heard.

Example
-------
>>> from torch.utils.data import ConcatDataset, Subset
>>> from speechbrain.dataio.dataset import DynamicItemDataset
>>> rows = {"a": {"words": "one"}, "b": {"words": "two"}}
>>> data = DynamicItemDataset(rows)
>>> rows_of(Subset(ConcatDataset([data, data]), [3]))[0]
['b']

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Any, Optional

from torch.utils.data import ChainDataset, ConcatDataset, Dataset, Subset

from speechbrain_merge.records.contents import by_content
from speechbrain_merge.records.fingerprint_parts import Attributes, OwnCode
from speechbrain_merge.records.own_functions import is_own

_IN_A_ROW = (ChainDataset, ConcatDataset)
_TOLD = {
    Subset: {"dataset", "indices"},
    ConcatDataset: {"datasets", "cumulative_sizes"},
    ChainDataset: {"datasets"},
}
"""Attributes of torch's own that are told by themselves."""


def rows_of(dataset: Any) -> tuple[Any, Optional[list]]:
    """The ids of a dataset, and its rows as text; as far as it has any.

    Arguments
    ---------
    dataset : Dataset
        Any; of parts of others, and of several in a row, the rows of these.

    Returns
    -------
    ids : list or int
        The number of rows where they have no ids.
    rows : list of str or None
        With the content of files in place of their paths.
    """
    if isinstance(dataset, Subset):
        places = [int(place) for place in dataset.indices]
        ids, rows = rows_of(dataset.dataset)
        if rows is None:
            return places, None
        return [ids[n] for n in places], [rows[n] for n in places]
    if isinstance(dataset, _IN_A_ROW):
        found = [rows_of(each) for each in dataset.datasets]
        if any(rows is None for _, rows in found):
            return [list(each) for each in found], None
        ids = [one for each, _ in found for one in each]
        return ids, [row for _, each in found for row in each or ()]
    data = getattr(dataset, "data", None)
    ids = getattr(dataset, "data_ids", None)
    if isinstance(data, dict) and isinstance(ids, list):
        return ids, [_row(data[one]) for one in ids]
    return (_length(dataset) if ids is None else ids), None


def made_of(dataset: Any, above: tuple = ()) -> Any:
    """What is made of the rows of a dataset, as a part of a fingerprint.

    Arguments
    ---------
    dataset : Dataset
        Any. Of a DynamicItemDataset count the functions of its pipeline, what
        they take and give, and what is given of it; of a class of the recipe
        its code, and what else it holds; of others all that they hold.
    above : tuple of Dataset, optional
        Those that hold it.

    Returns
    -------
    object
    """
    if any(dataset is each for each in above):
        return "within itself"
    above, kind = (*above, dataset), type(dataset)
    pipeline = getattr(dataset, "pipeline", None)
    held: Any = getattr(dataset, "__dict__", None)
    about: dict = {}
    told: set = set()
    if pipeline is not None:
        told = {"data", "data_ids", "pipeline"}
        about["items"] = [
            (item.func, list(item.takes), list(item.provides))
            for item in pipeline.dynamic_items
        ]
        about["given"] = dict(sorted(pipeline.output_mapping.items()))
        if not is_own(kind):
            return about
    elif isinstance(dataset, Subset):
        about["places"] = [int(place) for place in dataset.indices]
        about["of"] = made_of(dataset.dataset, above)
    elif isinstance(dataset, _IN_A_ROW):
        about["of"] = [made_of(each, above) for each in dataset.datasets]
    elif held is None:
        return {"dataset": dataset}  # a list, for instance
    for base, names in _TOLD.items():
        told = told | (names if isinstance(dataset, base) else set())
    about["kind"] = kind.__qualname__
    if is_own(kind):
        about["code"] = OwnCode((kind,))
    about["within"] = within = {}
    for name in sorted(set(held or ()) - told):
        inner = _datasets_in(held[name])
        if inner is not None:
            within[name] = [
                (made_of(each, above), *rows_of(each)) for each in inner
            ]
    rest = set(held or ()).difference(told, within)
    about["attributes"] = Attributes(dataset, frozenset(rest))
    return about


def _datasets_in(value):
    """The datasets that an attribute is or holds; None where it holds others."""
    if isinstance(value, dict):
        value = list(value.values())
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    return found if found and all(map(_is_dataset, found)) else None


def _is_dataset(value):
    return isinstance(value, Dataset)


def _length(dataset):
    try:
        return len(dataset)
    except TypeError:  # one that is only iterated over
        return None


def _row(row):
    """A row of a dataset as text."""
    return str(sorted(by_content(row).items()))
