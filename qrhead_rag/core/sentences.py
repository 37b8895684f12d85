"""Sentences of a text, by `sentencex`, and whether one can be read without its neighbour."""

import re

import sentencex

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
