"""Sentences of a text, by `sentencex`, whether one can be read without its neighbour, and a text cut to a few."""

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import sentencex

Span: TypeAlias = tuple[int, int]

LONGEST_SENTENCE = 1000
"""Characters of a sentence; what is longer, as a table or text without stops is, is cut at a line's or a word's end."""

LEANS_AT_MOST = 2
"""Sentences that may come along before one that begins with a pronoun or connective."""

OMISSION = " […] "
"""What stands where sentences were left out."""

# Pronouns and connectives that point back, in lower case: English, German, French, Spanish.
_POINTING = frozenset(
    """
    he she it they we you i this that these those his her its their such both another others but and or so then thus
    hence therefore however moreover furthermore also instead otherwise nevertheless meanwhile afterwards besides
    consequently accordingly yet still here there later similarly likewise
    er sie es wir ihr dies diese dieser dieses diesen jene jener jenes seine ihre aber und oder denn doch dann daher
    deshalb deswegen dennoch trotzdem jedoch außerdem dabei dadurch dafür danach dort auch
    il elle ils elles ce cet cette ces sa ses leur leurs mais et ou donc ni ensuite ainsi cependant toutefois pourtant
    puis alors aussi enfin là
    él ella ello ellos ellas este esta esto estos estas ese esa eso esos esas su sus pero sino pues entonces luego así
    además también después allí aquí
    """.split()  # noqa: SIM905 - a list of so many words in quotes is harder to read
)
# Chinese and Arabic write no space behind some of them, so these are compared as beginnings.
_POINTING_BEGINNINGS = tuple(
    """
    他 她 它 这 這 那 其 此 该 該 但 而 并 並 因此 所以 然而 不过 不過 另外 此外 同时 同時 于是 於是 后来 後來 也 又
    هو هي هما هم هذا هذه ذلك تلك هؤلاء لكن ولكن لذلك ثم كما وهو وهي وهذا وهذه وقد أيضا أيضًا
    """.split()  # noqa: SIM905
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_FIRST_WORD = re.compile(r"\w+")
_LINE_END = re.compile(r"\n\s*")
_WORD_END = re.compile(r"\s+")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, in order; each with the white space behind it.

    Abbreviations, decimals, and the stops of many scripts are known; a table, a list item or a paragraph without a stop
    is a sentence. The spans cover the whole text.

    >>> text = "Dr. Ash measured 3.5 km. 渡轮九点开。It was late."
    >>> [text[start:end] for start, end in sentence_spans(text)]
    ['Dr. Ash measured 3.5 km. ', '渡轮九点开。', 'It was late.']
    """
    spans: list[tuple[int, int]] = []
    start = 0
    # "en": rules of all scripts hold for every language; this names the abbreviations
    for sentence in sentencex.segment("en", _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)):
        end = start + len(sentence)
        if spans and not sentence.strip():
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
        start = end
    return spans


def leans_on_neighbour(sentence: str) -> bool:
    """Whether a sentence begins with a pronoun or connective that points to the one before it.

    Knows English, German, French, Spanish, Chinese and Arabic.

    >>> [leans_on_neighbour(sentence) for sentence in ("However, it sank.", "这座桥很长。", "The ferry sank.")]
    [True, True, False]
    """
    word = _FIRST_WORD.search(sentence.lower())
    return word is not None and (word[0] in _POINTING or word[0].startswith(_POINTING_BEGINNINGS))


def leaning_on(sentences: Sequence[str], index: int) -> range:
    """A sentence with those before it that it leans on, each on the next, at most `LEANS_AT_MOST`.

    >>> leaning_on(["The ferry sank.", "It was old.", "A storm rose."], 1)
    range(0, 2)
    """
    first = index
    while first > 0 and index - first < LEANS_AT_MOST and leans_on_neighbour(sentences[first]):
        first -= 1
    return range(first, index + 1)


def text_spans(text: str) -> list[Span]:
    """The sentences of a text, those longer than `LONGEST_SENTENCE` cut at a line's end, else a word's; they cover it.

    >>> text_spans("It rains. It pours.")
    [(0, 10), (10, 19)]
    """
    spans: list[Span] = []
    for first, end in sentence_spans(text):
        start = first
        while end - start > LONGEST_SENTENCE:
            cut = _last_end(text, start, start + LONGEST_SENTENCE)
            _append(spans, text, start, cut)
            start = cut
        _append(spans, text, start, end)
    return spans or [(0, 0)]


def _append(spans: list[Span], text: str, start: int, end: int) -> None:
    """White space alone is no sentence: it belongs to the one before it, at the beginning to the one after."""
    if spans and (text[start:end].isspace() or text[slice(*spans[-1])].isspace()):
        spans[-1] = spans[-1][0], end
    else:
        spans.append((start, end))


def _last_end(text: str, start: int, limit: int) -> int:
    """Where to cut the characters from `start`: after the last line or word that ends before `limit`, or there."""
    for boundary in (_LINE_END, _WORD_END):
        ends = [match.end() for match in boundary.finditer(text, start, limit)]
        if ends and ends[-1] > start:
            return ends[-1]
    return limit


def join_spans(text: str, spans: Sequence[Span], chosen: Iterable[int]) -> tuple[Span, ...]:
    """Character ranges of the chosen sentences, neighbours merged, without outer white space.

    >>> join_spans("It rains. It pours. Stay.", [(0, 10), (10, 20), (20, 25)], {0, 1})
    ((0, 19),)
    """
    ranges: list[Span] = []
    last = -2
    for index in sorted(chosen):
        if index == last + 1 and ranges:
            ranges[-1] = ranges[-1][0], spans[index][1]
        else:
            ranges.append(spans[index])
        last = index
    if text and ranges == [(0, len(text))]:
        return tuple(ranges)
    stripped = ((trimmed_start(text, start, end), trimmed_end(text, start, end)) for start, end in ranges)
    return tuple((start, end) for start, end in stripped if start < end)


def trimmed_start(text: str, start: int, end: int) -> int:
    """Where a range begins without its leading white space."""
    return start + len(text[start:end]) - len(text[start:end].lstrip())


def trimmed_end(text: str, start: int, end: int) -> int:
    """Where a range ends without its trailing white space."""
    return start + len(text[start:end].rstrip())


def cut_text(text: str, kept: Sequence[Span], omission: str = OMISSION) -> str:
    """The kept ranges of a text, with a sign where something is missing; nothing where nothing is kept.

    >>> cut_text("It rains. It pours. Stay.", [(0, 9), (20, 25)])
    'It rains. […] Stay.'
    >>> cut_text("It rains. It pours. Stay.", [(10, 19)])
    '[…] It pours. […]'
    """
    if not kept:
        return ""
    cut = omission.join(text[start:end] for start, end in kept)
    before = omission.lstrip() if text[: kept[0][0]].strip() else ""
    after = omission.rstrip() if text[kept[-1][1] :].strip() else ""
    return f"{before}{cut}{after}"
