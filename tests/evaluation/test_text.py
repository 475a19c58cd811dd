"""Text post-processing, step by step."""

import builtins
import pickle
import random

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_merge.evaluation import TextNormalizer


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello, World!", "HELLO WORLD"),
        ("  a\tb\n c ", "A B C"),
        ("", ""),
        ("don't", "DON'T"),
        ("'quoted' rock'n'roll rockin'", "QUOTED ROCK'N'ROLL ROCKIN"),
        ("don\u2019t \u2018x\u2019", "DON'T X"),
        ("[um] I (uh) see", "I SEE"),
        ("[a [b] c] d", "D"),
        ("(a [b) c] d", "A D"),
        ("a ( b", "A B"),
        ("<noise> {yes}", "NOISE YES"),
        ("A-B-C", "A B C"),
        ("A~B~C", "A B C"),
        ("a. b. c.", "A B C"),
        ("U.S.A. rules", "U S A RULES"),
        ("e-mail", "E MAIL"),
        ("1984", "ONE THOUSAND NINE HUNDRED AND EIGHTY FOUR"),
        ("1,000 men", "ONE THOUSAND MEN"),
        ("1,2,3", "ONE TWO THREE"),
        ("007", "ZERO ZERO SEVEN"),
        ("0", "ZERO"),
        ("3.50", "THREE POINT FIVE ZERO"),
        ("21st and 2nd", "TWENTY FIRST AND SECOND"),
        ("50% & more", "FIFTY PERCENT AND MORE"),
        ("mp3 B2B", "MP THREE B TWO B"),
        ("10:30", "TEN THIRTY"),
        ("1234567890123", "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE ZERO "
         "ONE TWO THREE"),
        ("caf\u00e9 cafe\u0301", "CAF\u00c9 CAF\u00c9"),
        ("stra\u00dfe", "STRASSE"),
    ],
)  # fmt: skip
def test_default_steps(text, expected):
    assert TextNormalizer()(text) == expected


@pytest.mark.parametrize(
    "options, text, expected",
    [
        ({"numbers": "digits"}, "in 1984, 3.5", "IN ONE NINE EIGHT FOUR THREE FIVE"),
        ({"numbers": None}, "in 1984", "IN 1984"),
        ({"upper_case": False}, "Hi There", "Hi There"),
        ({"remove_brackets": ["[]"]}, "[x] (um) a", "UM A"),
        ({"remove_brackets": ["<>"]}, "<um> [b] a", "B A"),
        ({"remove_brackets": []}, "[um] a", "UM A"),
        ({"fillers": ["um", "Mm-hm"]}, "Um, UM a drum", "A DRUM"),
        ({"punctuation": False}, "hi, A-B!", "HI, A B !"),
        ({"punctuation": False, "split_letters": False}, "A-B", "A-B"),
        ({"signs": {"$": "dollars"}}, "5$ 5%", "FIVE DOLLARS FIVE"),
        ({"language": "fr"}, "80 %", "QUATRE VINGTS"),
        ({"language": "de"}, "21", "EINUNDZWANZIG"),
    ],
)  # fmt: skip
def test_each_step_is_an_option(options, text, expected):
    assert TextNormalizer(**options)(text) == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"numbers": "digits"},
        {"numbers": None},
        {"remove_brackets": ["<>"]},
        {"fillers": ["um", "a"]},
        {"upper_case": False},
        {"punctuation": False, "numbers": None},
        {"language": "fr"},
    ],
)
def test_twice_is_once(options):
    normalize = TextNormalizer(**options)
    draw = random.Random(0)
    alphabet = "aBcDé'’-~.,()[]<>% &0123456789stndßıİﬁ½² \u0301\u00a0"
    for _ in range(400):
        text = "".join(draw.choices(alphabet, k=draw.randint(0, 20)))
        once = normalize(text)
        assert normalize(once) == once, repr(text)


def test_as_a_yaml_step_and_in_a_worker():
    hparams = load_hyperpyyaml(
        """
        normalizer: !new:speechbrain_merge.evaluation.TextNormalizer
            numbers: digits
            fillers: [um]
        """
    )
    normalize = pickle.loads(pickle.dumps(hparams["normalizer"]))
    assert normalize("um, 42") == "FOUR TWO"


def test_without_num2words_the_message_says_what_to_do(monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "num2words":
            raise ImportError("no such module")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"speechbrain_merge\[whisper\]"):
        TextNormalizer()
    assert TextNormalizer(numbers=None)("a 1") == "A 1"


def test_wrong_arguments_fail_at_once():
    with pytest.raises(ValueError, match='"cardinal", "digits" or None'):
        TextNormalizer(numbers="year")
    with pytest.raises(ValueError, match="pairs such as"):
        TextNormalizer(remove_brackets=["["])
    with pytest.raises(NotImplementedError):
        TextNormalizer(language="tlh")


def test_ordinals_are_words_however_numbers_are_read():
    """An ordinal has one reading; "SIX TH" would be two errors for one."""
    for numbers in ("cardinal", "digits"):
        assert TextNormalizer(numbers=numbers)("the 6th") == "THE SIXTH"
    assert TextNormalizer(numbers="digits")("call 42") == "CALL FOUR TWO"
