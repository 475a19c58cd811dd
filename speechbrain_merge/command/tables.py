"""Tables in a terminal.

Example
-------
>>> print_table(["model", "WER"], [["ties", number_cell(9.25, "{:.1f}")]])
model  WER
ties   9.2

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.records.errors import printable


def number_cell(value, form):
    """A number as a cell, or a dash where there is none.

    Arguments
    ---------
    value : float or None
        The number.
    form : str
        How to write it, e.g. ``"{:.4f}"``.

    Returns
    -------
    str
    """
    return "-" if value is None else form.format(value)


def print_table(head, rows):
    """Prints columns: words to the left, numbers to the right.

    Arguments
    ---------
    head : list of str
        Titles of the columns.
    rows : list of list
        Their cells.
    """
    cells = [
        [printable(str(cell)).replace("\n", "\\n") for cell in row]
        for row in [head, *rows]
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    numeric = [
        bool(rows) and all(_is_number(row[column]) for row in rows)
        for column in range(len(head))
    ]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric)
        )
        print(line.rstrip())


def _is_number(cell):
    """Whether a cell belongs to the right of its column."""
    return str(cell).strip("%-").replace(".", "", 1).isdigit() or cell == "-"
