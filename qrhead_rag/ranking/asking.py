"""A list asked: the passes over its queries, and what the readout reads of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from qrhead_rag.core.attention import Rows, group_parts
from qrhead_rag.core.heads import Readout
from qrhead_rag.core.prompt import Span
from qrhead_rag.core.scoring import calibrate, evidence, strengths


@dataclass(frozen=True)
class Baseline:
    """What a list attracts whatever is asked: from the null query, or from the instruction under `evidence`.

    Attributes:
        ids: the tokens that it was read from.
        position: of the first of them.
        attention: their mean. Shape: (heads, tokens)
    """

    ids: Sequence[int]
    position: int
    attention: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the attention."""
        return self.attention.nbytes

    def is_of(self, part: Rows) -> bool:
        """Whether it is what the first reading of a query under `evidence` would give."""
        return (part.position, list(_instruction(part))) == (self.position, list(self.ids))


class Answers(NamedTuple):
    """What some queries read of a list.

    Attributes:
        by_head: of each query, what its `Reading` takes. Shape: each (heads, tokens)
        strengths: likewise; None under `published`. Shape: each (heads, pieces)
        baseline: for later queries of the list.
    """

    by_head: list[Tensor]
    strengths: list[Tensor | None]
    baseline: Baseline


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


def _instruction(part: Rows) -> Sequence[int]:
    """The tokens of a query under `evidence` up to its own."""
    return part.ids[: part.rows_by_reading[0].stop]


def ask(
    readout: Readout,
    attend: Callable[[Sequence[Rows]], Tensor],
    queries: Sequence[Rows],
    null_query: Callable[[], Rows],
    baseline: Baseline | None,
    piece_of: Tensor,
    num_pieces: int,
) -> Answers:
    """Read some queries, at least one, which share passes.

    The baseline is read the first time: under `published` the null query shares a pass, under `evidence` the
    instruction is a part of the queries.

    Args:
        readout: what is read.
        attend: gives the attention of the selected heads to the list. Shape: (heads, readings, tokens)
        queries: as `rows_to_read` gives them.
        null_query: gives the mean of its span.
        baseline: of this list, if it is known.
        piece_of: index of each token's piece, or OUTSIDE. Shape: (tokens,)
        num_pieces: pieces of the list.
    """
    if readout == "published":
        missing = [null_query()] if baseline is None else []
        attention = attend([*queries, *missing]).cpu()  # (heads, parts, tokens)
        baseline = baseline or Baseline(missing[0].ids, missing[0].position, attention[:, -1].clone())
        calibrated = [calibrate(attention[:, number], baseline.attention) for number in range(len(queries))]
        return Answers(calibrated, [None] * len(queries), baseline)
    by_head: list[Tensor] = []
    of_pieces: list[Tensor | None] = []
    for group in group_parts(queries):
        known = baseline.attention if baseline is not None and all(map(baseline.is_of, group)) else None
        parts = group if known is None else [replace(part, readings=part.rows_by_reading[1:]) for part in group]
        attention = attend(parts)  # row by row: those of one pass at a time
        piece_on_device = piece_of.to(attention.device)
        for rows in attention.split_with_sizes([len(part.rows_by_reading) for part in parts], dim=1):
            prior, own = (rows[:, 0], rows[:, 1:]) if known is None else (known, rows)
            contributions, peaks = evidence(own, prior, piece_on_device, num_pieces)
            by_head.append(contributions.cpu())
            of_pieces.append(strengths(peaks, prior, contributions, piece_on_device, num_pieces).cpu())
        if known is None:
            baseline = Baseline(_instruction(group[-1]), group[-1].position, prior.clone())
    assert baseline is not None  # there is at least one query
    return Answers(by_head, of_pieces, baseline)
