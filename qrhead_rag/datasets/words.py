"""Words of a text in any script, for BM25. Needs the extra `eval`.

Scripts with spaces between words are cut into runs of two or more letters, digits and underscores; a mark, such as a
vowel sign of Hindi, belongs to its letter. Scripts without such spaces, and Korean, which joins particles to words, are
cut into their characters and the pairs of neighbours: nothing of them must be known, and for Chinese both together rank
as well as words (Nie et al., "On the use of words and n-grams for Chinese information retrieval", IRAL 2000).
"""

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any
from unicodedata import normalize

from qrhead_rag.extras import require_extra

# the scripts of Lucene's CJKAnalyzer, and those of Unicode's line breaking class SA with their kin
_UNSPACED = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Hangul", "Yi"),
    *("Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"),
)

_PLAIN_WORD = re.compile(r"\b\w\w+\b")  # of bm25s, from scikit-learn


def plain_words(text: str) -> list[str]:
    """The words that bm25s cuts a text into by default, in lower case; right for English and its like.

    >>> plain_words("The 2 ferries leave."), plain_words("हिन्दी")
    (['the', 'ferries', 'leave'], [])
    """
    return _PLAIN_WORD.findall(text.lower())


def cut_words(text: str) -> list[str]:
    """The words of a text of any script, in lower case; other ways to write a letter (é, ＡＩ) give equal words.

    Raises:
        ImportError: the extra `eval` is not installed.

    >>> cut_words("The 2 ferries leave."), cut_words("हिन्दी में"), cut_words("ＡＩで水を"), cut_words("ไม่มี")
    (['the', 'ferries', 'leave'], ['हिन्दी', 'में'], ['ai', 'で', '水', 'を', 'で水', '水を'], ['ไ', 'ม่', 'มี', 'ไม่', 'ม่มี'])
    """
    if text.isascii():
        return plain_words(text)
    word, character, width_forms, _ = _patterns()
    text = normalize("NFC", width_forms.sub(lambda run: normalize("NFKC", run[0]), text)).lower()
    words: list[str] = []
    for match in word.finditer(text):
        if match["unspaced"] is None:
            words.append(match[0])
        else:
            characters = character.findall(match[0])
            words += [*characters, *map("".join, pairwise(characters))]
    return words


def phrase_pattern(phrases: Sequence[str]) -> Any:
    """A pattern that any of the phrases matches where no word goes on beyond its ends, in upper or lower case.

    >>> bool(phrase_pattern(["Nine"]).search("At nine.")), bool(phrase_pattern(["nine"]).search("nineteen"))
    (True, False)
    """
    regex = require_extra("regex", "eval")
    *_, part = _patterns()
    return regex.compile(rf"(?<!{part})(?i:{'|'.join(map(regex.escape, phrases))})(?!{part})", regex.V1)


@cache
def _patterns() -> tuple[Any, Any, Any, str]:
    """Patterns of a word or a run of unspaced characters, of a character with its marks, of wide letters, and the class
    of what words with spaces between them are made of.
    """
    regex = require_extra("regex", "eval")
    scripts = "".join(rf"\p{{Script={script}}}" for script in _UNSPACED)
    unspaced = rf"[[\p{{L}}\p{{M}}\p{{N}}]&&[{scripts}ー]]"  # ー is of no script
    # [\p{L}\p{N}_] is what `re` and bm25s call \w; here \w has marks and joiners besides
    part = rf"[[\w\p{{N}}]--{unspaced}]"
    spaced = rf"[[\p{{L}}\p{{N}}_]--{unspaced}]{part}+(?<!\p{{Join_Control}})"
    word = rf"(?P<unspaced>(?:(?={unspaced})\X)+)|{spaced}"
    return regex.compile(word, regex.V1), regex.compile(r"\X"), regex.compile("[\uff00-\uffef]+"), part
