"""Tables as comma-separated values and as LaTeX.

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import io
from collections.abc import Sequence


def csv_text(header: Sequence, rows: Sequence, mode: str) -> str:
    """A table as comma-separated values, without marks.

    Arguments
    ---------
    header : list of str
        Titles of the columns.
    rows : list of list of str
        The cells.
    mode : str
        The mode, which stands in a column of its own.

    Returns
    -------
    str

    Example
    -------
    >>> print(
    ...     csv_text(
    ...         ["WER %", "a\\n9 words"], [["x", "**1.0**"]], "usual"
    ...     ).strip()
    ... )
    mode,WER %,a 9 words
    usual,x,1.0
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["mode", *(title.replace("\n", " ") for title in header)])
    for row in rows:
        writer.writerow([mode, *(cell.strip("*") for cell in row)])
    return stream.getvalue()


def latex_table(header: Sequence, rows: Sequence) -> str:
    r"""A table for a paper, with the lines of ``booktabs``.

    Arguments
    ---------
    header : list of str
        Titles of the columns.
    rows : list of list of str
        The cells; what is bold in Markdown is bold.

    Returns
    -------
    str

    Example
    -------
    >>> print(latex_table(["WER %", "a"], [["x_1", "**1.0** "]]))
    \begin{tabular}{lr}
    \toprule
    WER \% & a \\
    \midrule
    x\_1 & \textbf{1.0} \\
    \bottomrule
    \end{tabular}
    """
    lines = [
        " & ".join(_latex(cell.replace("\n", " ")) for cell in row) + r" \\"
        for row in [header, *rows]
    ]
    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


# what LaTeX takes for a command, and what its fonts have under another name
_LATEX = {
    **{letter: f"\\{letter}" for letter in "%_&#${}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
}


def _latex(cell):
    """A cell with LaTeX's special characters escaped."""
    cell = cell.strip()
    bold = cell.startswith("**") and cell.endswith("**")
    cell = "".join(_LATEX.get(letter, letter) for letter in cell.strip("*"))
    return rf"\textbf{{{cell}}}" if bold else cell
