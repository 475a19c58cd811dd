"""Results of a study in SpeechBrain's train loggers.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path

from speechbrain.utils.train_logger import TensorboardLogger, TrainLogger
from speechbrain_merge.report import markdown_table
from speechbrain_merge.study.results import flat
from speechbrain_merge.study.tables import main_rows


def log_results(
    train_logger: TrainLogger, folder: Path, results: Mapping, times: Mapping
) -> None:
    """Logs the error rates of all models, and to TensorBoard the pictures.

    Arguments
    ---------
    train_logger : TrainLogger
        Gets a call of ``log_stats`` for each model. A ``TensorboardLogger``
        also gets the table as text, and the pictures of the folder.
    folder : Path
        The study's folder, with its pictures.
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``.
    """
    board = isinstance(train_logger, TensorboardLogger)
    for row in flat(results)["rows"]:
        rates = {
            f"{results['metric']} {name}": 100
            * counts["errors"]
            / counts["words"]
            for name, counts in row["sets"].items()
            if counts["words"]
        }
        if board:  # takes numbers alone: the model is in the tag
            train_logger.log_stats(
                {},
                test_stats={f"{row['name']}/{k}": v for k, v in rates.items()},
            )
        else:
            train_logger.log_stats({"model": row["name"]}, test_stats=rates)
    if board and train_logger.writer is not None:
        _log_to_board(train_logger.writer, folder, results, times)


def _log_to_board(writer, folder, results, times):
    """The tables as text, and the pictures."""
    from matplotlib.image import imread

    for mode in results["modes"]:
        table = markdown_table(*main_rows(results, mode, times))
        writer.add_text(f"{folder.name}/{mode}", table)
    for path in sorted(folder.glob("*.png")):
        # with its transparency left out, which is a fourth channel
        picture = imread(path)[..., :3]
        writer.add_image(
            f"{folder.name}/{path.stem}", picture, dataformats="HWC"
        )
    writer.flush()
