"""Texts cut until what holds them is within a cap, as counted by whatever counts. Pure arithmetic.

A counter may be a provider's, where each count is a request. Sentences are therefore chosen by characters, and only a
few choices are counted.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from qrhead_rag.core.pruning import Prune, ReadText, prune_texts
from qrhead_rag.core.sentences import OMISSION, cut_text, join_spans, text_spans

SIGN = OMISSION.strip()
"""What is left of a text of which nothing is kept."""

_COUNTS = 8  # choices that are counted
_NEAR = 50  # a choice is near enough to the cap when less than this part of it is free
_LEAST = 4  # the part of the cap that texts get where what is never cut leaves no room
_WORD_BEGIN = re.compile(r"(?<=\s)\S")
_WORD_END = re.compile(r"\s")


def shorten_texts(
    texts: Sequence[ReadText], limit: int, count: Callable[[Sequence[str]], int], uncut: int
) -> tuple[str, ...]:
    """The texts, the longest cut to their best sentences, so that they cost no more than `limit` if that can be.

    Short texts stay whole where the long ones can make the room. Of texts without evidence, the beginning and the end
    are kept. Where the limit is passed even without the texts, they get a quarter of it all the same.

    Args:
        texts: with their evidence.
        limit: what they may cost.
        count: what these texts cost, with what stands beside them.
        uncut: what they cost as they are, more than `limit`.

    >>> texts = [ReadText("When?", (), ()), ReadText("It rains. It pours. It snows. It hails.", (), ())]
    >>> shorten_texts(texts, 32, lambda texts: sum(map(len, texts)), 44)
    ('When?', 'It rains. […] It hails.')
    """
    lengths = [len(text.text) for text in texts]
    everything = [index for index, length in enumerate(lengths) if length > len(SIGN)]
    level = fair_share(lengths, sum(lengths) * limit / uncut)
    shortest, least = _cut(texts, everything, 0), 0
    for chosen in ([index for index in everything if lengths[index] > level], everything):
        shortest = _cut(texts, chosen, 0)
        least = count(shortest)
        if least <= limit:
            break
    else:
        limit = least + limit // _LEAST

    best, low, high = shortest, (0, least), (sum(lengths[index] for index in chosen), uncut)
    for attempt in range(_COUNTS):
        free = limit - low[1]
        if high[0] - low[0] < 2 or free <= limit // _NEAR:
            break
        share = 0.5 if attempt % 3 == 2 else free / max(1, high[1] - low[1])
        guess = min(max(low[0] + round((high[0] - low[0]) * share), low[0] + 1), high[0] - 1)
        tried = _cut(texts, chosen, guess)
        tokens = count(tried)
        if tokens <= limit:
            best, low = tried, (guess, tokens)
        else:
            high = guess, tokens
    return best


def fair_share(lengths: Sequence[int], room: float) -> float:
    """The length that each may have, where shorter ones leave their room to longer ones.

    >>> fair_share([1, 9, 9], 13)
    6.0
    """
    for number, length in enumerate(sorted(lengths)):
        share = room / (len(lengths) - number)
        if length > share:
            return share
        room -= length
    return max(lengths, default=0)


def keep_ends(text: str, max_chars: int) -> str:
    """The first and the last sentences of a text, else words, with a sign between them; perhaps the sign alone.

    >>> keep_ends("It rains. It pours. It snows. It hails.", 25)
    'It rains. […] It hails.'
    """
    if len(text) <= max_chars:
        return text
    room, spans = (max_chars - len(OMISSION)) // 2, text_spans(text)
    if room <= 0:
        return SIGN
    ends, starts, limit = [end for _, end in spans], [start for start, _ in spans], len(text) - room
    whole = bisect_right(ends, room)
    word = max((match.start() for match in _WORD_END.finditer(text, 0, room + 1)), default=0)
    words = word if text[:word].strip() else room
    first = ends[whole - 1] if whole else words
    whole = bisect_left(starts, limit)
    begin = _WORD_BEGIN.search(text, max(limit, 1))
    last = starts[whole] if whole < len(starts) else begin.start() if begin else limit
    return cut_text(text, join_spans(text, [(0, first), (first, last), (last, len(text))], {0, 2})) or SIGN


def part_of(read: ReadText, start: int, text: str) -> ReadText:
    """A part of a text that was read, with its evidence.

    >>> part_of(ReadText("A. B.", (1, 4), (0.5, 0.25)), 3, "B.")
    ReadText(text='B.', ends=(1,), contributions=(0.25,), before='')
    """
    first, last = bisect_left(read.ends, start), bisect_left(read.ends, start + len(text))
    return ReadText(text, tuple(end - start for end in read.ends[first:last]), read.contributions[first:last])


def _cut(texts: Sequence[ReadText], chosen: Sequence[int], max_chars: int) -> tuple[str, ...]:
    """All texts, the chosen ones cut to about so many characters together."""
    cut = dict.fromkeys(chosen, SIGN)
    read = [index for index in chosen if texts[index].ends]
    unread = [index for index in chosen if not texts[index].ends]
    lengths = [len(texts[index].text) for index in unread]
    of_read = max_chars
    if unread:
        of_unread = round(max_chars * sum(lengths) / sum(len(texts[index].text) for index in chosen))
        level, of_read = fair_share(lengths, of_unread), max_chars - of_unread
        cut |= {index: keep_ends(texts[index].text, int(level)) for index in unread}
    if read and of_read > 0:
        spans_by_number = prune_texts(
            [texts[index] for index in read], range(len(read)), Prune(max_tokens=of_read), len
        )
        for number, spans in spans_by_number.items():
            cut[read[number]] = cut_text(texts[read[number]].text, spans) or SIGN
    return tuple(cut.get(index, text.text) for index, text in enumerate(texts))
