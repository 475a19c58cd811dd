"""Bring transcripts to one spelling before they are compared.

A word error rate should count words that were heard wrong, not "1984" for
"nineteen eighty four", "OK." for "ok" or "[um]" for nothing. ``TextNormalizer``
is one callable with a switch for each step; apply the same to references and
hypotheses. As a YAML step of a recipe:

.. code-block:: yaml

    normalizer: !new:speechbrain_merge.evaluation.TextNormalizer
        numbers: cardinal
        remove_brackets: ["[]", "()"]

Applying it twice changes nothing more.

Example
-------
>>> normalize = TextNormalizer()
>>> normalize("[um] It's 21 -- no, A-B-C (laughs) 50% off!")
"IT'S TWENTY ONE NO A B C FIFTY PERCENT OFF"
>>> TextNormalizer(numbers="digits")("Room 42")
'ROOM FOUR TWO'

Authors
 * The speechbrain_merge authors 2026
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Optional

NUMBERS = ("cardinal", "digits")

# signs that are read aloud, by language
SPOKEN_SIGNS = {"en": {"%": "percent", "&": "and"}}

# all that speech recognisers and keyboards write for an apostrophe
APOSTROPHES = re.compile("[\u2018\u2019\u02bc\u02bb\u00b4\uff07`]")

# more digits than this are a telephone or card number, read one by one
LONGEST_CARDINAL = 12

# 1,000 and 12,345,678: a comma before exactly three digits groups thousands
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
ORDINAL = re.compile(r"(?<![\d.])(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")

LETTERS_BY_DASH = re.compile(r"\b[^\W\d_](?:[-~][^\W\d_])+\b")
LETTERS_BY_DOT = re.compile(r"\b[^\W\d_]\.(?: ?[^\W\d_]\.)+")


class TextNormalizer:
    """Text in, one spelling of it out.

    The steps are done in the order of the arguments.

    Arguments
    ---------
    remove_brackets : iterable of str
        Pairs of brackets whose contents are comments, fillers or noises, and
        are removed with them. Of other brackets only the signs go (with the
        punctuation) and the words stay.
    split_letters : bool
        Write spelled words as letters: "A-B-C", "A~B~C" and "a. b. c." become
        "A B C".
    numbers : str
        How digits are read. "cardinal": as the number they form, so "1984" is
        one thousand nine hundred and eighty-four; years are not guessed,
        as no rule tells 1984 the year from 1984 the number. Digits with a
        leading zero and more than twelve digits are read one by one, "3.5" as
        three point five, and in English "1,000" as one thousand. "digits":
        every digit by itself. Either way "2nd" is second in English. None:
        digits stay.
    signs : dict
        Signs that are read aloud, to their words; by default "%" and "&" in
        English, and none in other languages.
    punctuation : bool
        Replace punctuation by a space, except apostrophes inside a word.
    fillers : iterable of str
        Words to drop, such as "um", wherever they stand.
    upper_case : bool
        Write everything in capitals.
    language : str
        Language of the numbers, by its two-letter code.

    Raises
    ------
    ImportError
        Where numbers are to be read and num2words is not installed.

    Example
    -------
    >>> normalize = TextNormalizer(numbers=None, fillers=["uh"])
    >>> normalize("Uh, call J. F. K. on 555 - \u2018don\u2019t\u2019 wait")
    "CALL J F K ON 555 DON'T WAIT"
    >>> normalize(normalize("(x) A-B")) == normalize("(x) A-B") == "A B"
    True
    >>> TextNormalizer(language="fr")("les 21 mots").lower()
    'les vingt et un mots'
    """

    def __init__(
        self,
        remove_brackets: Iterable[str] = ("[]", "()"),
        split_letters: bool = True,
        numbers: Optional[str] = "cardinal",
        signs: Optional[Mapping[str, str]] = None,
        punctuation: bool = True,
        fillers: Iterable[str] = (),
        upper_case: bool = True,
        language: str = "en",
    ):
        if numbers not in (None, *NUMBERS):
            raise ValueError(
                f'numbers is "cardinal", "digits" or None, not {numbers!r}'
            )
        pairs = list(remove_brackets)
        if any(not isinstance(pair, str) or len(pair) != 2 for pair in pairs):
            raise ValueError(
                "remove_brackets holds pairs such as '[]' and '()', not "
                f"{pairs}"
            )
        self.bracketed = [
            re.compile(
                f"{re.escape(pair[0])}[^{re.escape(pair)}]*{re.escape(pair[1])}"
            )
            for pair in pairs
        ]
        self.split_letters = split_letters
        self.numbers = numbers
        if signs is None:
            signs = SPOKEN_SIGNS.get(language, {})
        self.signs = dict(signs)
        self.punctuation = punctuation
        self.fillers = frozenset(_spell(word).casefold() for word in fillers)
        self.upper_case = upper_case
        self.language = language
        if numbers is not None:
            # an unknown language should fail now, not after the decoding
            self._read("1")

    def __call__(self, text: str) -> str:
        """Normalise one transcript.

        Arguments
        ---------
        text : str
            As the reference or the recogniser has it.

        Returns
        -------
        str
            Words parted by single spaces.
        """
        text = self._remove_brackets(_spell(text))
        if self.split_letters:
            text = LETTERS_BY_DASH.sub(_as_letters, text)
            text = LETTERS_BY_DOT.sub(_as_letters, text)
        for sign, words in self.signs.items():
            text = text.replace(sign, f" {words} ")
        if self.numbers is not None:
            text = self._numbers_to_words(text)
        if self.punctuation:
            text = "".join(map(_word_character, text))
            text = re.sub(r"(?<!\w)'+|'+(?!\w)", " ", text)
        kept = text.split()
        if self.fillers:
            kept = [w for w in kept if w.casefold() not in self.fillers]
        text = " ".join(kept)
        # capitals may need composing anew
        return _spell(text.upper()) if self.upper_case else text

    def _remove_brackets(self, text):
        """Drop comments; again until none is left, as they may be nested."""
        before = None
        while text != before:
            before = text
            for pattern in self.bracketed:
                text = pattern.sub(" ", text)
        return text

    def _numbers_to_words(self, text):
        """Write out every number, set apart from letters that touch it."""
        if self.numbers == "cardinal" and self.language == "en":
            text = THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
        if self.language == "en":
            text = ORDINAL.sub(
                lambda m: f" {self._read(m[1], 'ordinal')} ", text
            )
        return NUMBER.sub(self._number, text)

    def _number(self, match):
        """Words for a match of NUMBER, by the rules of the class."""
        digits, _, decimals = match[0].partition(".")
        if decimals and self.numbers == "cardinal":
            point = self._read("0.5").split()[1]
            return f" {self._whole(digits)} {point} {self._each(decimals)} "
        return f" {self._whole(digits)} {self._whole(decimals)} "

    def _whole(self, digits):
        """Words for a string of digits."""
        if (
            self.numbers == "digits"
            or len(digits) > LONGEST_CARDINAL
            or (len(digits) > 1 and int(digits[0]) == 0)
        ):
            return self._each(digits)
        return self._read(digits) if digits else ""

    def _each(self, digits):
        """Words for digits read one by one."""
        return " ".join(self._read(digit) for digit in digits)

    def _read(self, number, to="cardinal"):
        """Ask num2words, without the hyphens and commas it writes."""
        try:
            from num2words import num2words
        except ImportError as error:
            raise ImportError(
                "writing numbers as words needs num2words: pip install "
                "'speechbrain_merge[whisper]', or say numbers=None"
            ) from error
        value = float(number) if "." in number else int(number)
        words = num2words(value, lang=self.language, to=to)
        return words.replace("-", " ").replace(",", "")


def _spell(text):
    """One code point for one character, one apostrophe."""
    return APOSTROPHES.sub("'", unicodedata.normalize("NFKC", text))


def _as_letters(match):
    """The letters of a match, parted by spaces."""
    return f" {' '.join(filter(str.isalpha, match[0]))} "


def _word_character(character):
    """Letters, marks, digits and apostrophes stay, the rest parts words."""
    if character == "'" or unicodedata.category(character)[0] in "LMN":
        return character
    return " "
