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
        null: attention of the null query, for later queries; None where the readout needs none. Shape: (heads, tokens)
    """

    by_head: list[Tensor]
    null: Tensor | None


def rows_to_read(readout: Readout, ids: Sequence[int], position: int, query_start: int, query_tokens: Span) -> Rows:
    """The rows of a query that a readout reads.

    Under `published` the mean of the query span; under `evidence` the mean of the instruction, which stands before the
    query, then each of the query's own tokens.

    Args:
        readout: of the list.
        ids: what follows the documents.
        position: of the first of them.
        query_start: index of the query span in `ids`.
        query_tokens: the query's own tokens in `ids`.
    """
    if readout == "published":
        return Rows(ids, position, (range(query_start, len(ids)),))
    own = (range(row, row + 1) for row in range(*query_tokens))
    # What follows the query is not run: no row that is read sees it.
    return Rows(ids[: query_tokens.end], position, (range(query_start, query_tokens.start), *own))


def ask(
    readout: Readout,
    attend: Callable[[Sequence[Rows]], Tensor],
    queries: Sequence[Rows],
    null_query: Callable[[], Rows],
    null: Tensor | None,
    piece_of: Tensor,
    num_pieces: int,
) -> Answers:
    """Read some queries, which share passes.

    Under `published` the null query shares one of them the first time; `evidence` needs none.

    Args:
        readout: what is read.
        attend: gives the attention of the selected heads to the list. Shape: (heads, readings, tokens)
        queries: as `rows_to_read` gives them.
        null_query: gives the mean of its span.
        null: attention of the null query, if it is known. Shape: (heads, tokens)
        piece_of: index of each token's piece, or OUTSIDE. Shape: (tokens,)
        num_pieces: pieces of the list.
    """
    if readout == "published":
        attention = attend(queries if null is not None else [*queries, null_query()]).cpu()  # (heads, parts, tokens)
        null = attention[:, -1].clone() if null is None else null
        return Answers([calibrate(attention[:, number], null) for number in range(len(queries))], null)
    by_head: list[Tensor] = []
    for group in group_parts(queries):
        attention = attend(group)  # row by row: those of one pass at a time
        piece_on_device = piece_of.to(attention.device)
        for rows in attention.split_with_sizes([len(part.rows_by_reading) for part in group], dim=1):
            by_head.append(evidence(rows[:, 1:], rows[:, 0], piece_on_device, num_pieces).cpu())
    return Answers(by_head, None)
