"""A list asked: the passes over its queries, and what the readout reads of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from qrhead_rag.core.attention import Rows, group_parts
from qrhead_rag.core.heads import Readout
from qrhead_rag.core.prompt import Span
from qrhead_rag.core.scoring import calibrate, evidence


class Answers(NamedTuple):
    """What some queries read of a list.

    Attributes:
        by_head: of each query, what its `Reading` takes. Shape: each (heads, tokens)
        null: attention of the null query, for later queries. Shape: (heads, tokens)
    """

    by_head: list[Tensor]
    null: Tensor


def rows_to_read(readout: Readout, ids: Sequence[int], position: int, query_start: int, query_tokens: Span) -> Rows:
    """The rows of a query that a readout reads: the mean of its span, or each of its own tokens.

    Args:
        readout: of the list.
        ids: what follows the documents.
        position: of the first of them.
        query_start: index of the query span in `ids`.
        query_tokens: the query's own tokens in `ids`.
    """
    if readout == "published":
        return Rows(ids, position, query_start)
    return Rows(ids, position, query_tokens.start, query_tokens.end, averaged=False)


def ask(
    readout: Readout,
    attend: Callable[[Sequence[Rows]], Tensor],
    queries: Sequence[Rows],
    null_query: Rows,
    null: Tensor | None,
    piece_of: Tensor,
    num_pieces: int,
) -> Answers:
    """Read some queries, which share passes; the first time, the null query shares one of them.

    Args:
        readout: what is read.
        attend: gives the attention of the selected heads to the list. Shape: (heads, readings, tokens)
        queries: as `rows_to_read` gives them.
        null_query: the mean of its span.
        null: attention of the null query, if it is known. Shape: (heads, tokens)
        piece_of: index of each token's piece, or OUTSIDE. Shape: (tokens,)
        num_pieces: pieces of the list.
    """
    if readout == "published":
        attention = attend(queries if null is not None else [*queries, null_query]).cpu()  # (heads, parts, tokens)
        null = attention[:, -1].clone() if null is None else null
        return Answers([calibrate(attention[:, number], null) for number in range(len(queries))], null)
    by_head: list[Tensor] = []
    for group in group_parts(queries if null is not None else [null_query, *queries]):
        attention = attend(group)  # row by row: those of one pass at a time
        by_part = list(attention.split_with_sizes([part.num_readings for part in group], dim=1))
        if null is None:
            null = by_part.pop(0)[:, 0].cpu()
        null_on_device, piece_on_device = null.to(attention.device), piece_of.to(attention.device)
        by_head += [evidence(rows, null_on_device, piece_on_device, num_pieces).cpu() for rows in by_part]
    assert null is not None  # there is at least one query
    return Answers(by_head, null)
