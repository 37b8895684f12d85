"""What a head is worth on one example: the criteria by which heads are chosen.

    mass         calibrated attention on the relevant documents (QRHead, Zhang et al., arXiv 2506.09944, eq. 1)
    ndcg         nDCG@10 of the ranking by this head alone (the selection for the BEIR experiments of the same paper)
    contrastive  softmax over the documents at a temperature, its mass on the relevant ones (CoRe heads, Tran et al.,
                 arXiv 2510.02219); its published detector knows one relevant document a list, here there may be several

`mass` prefers heads that attend much, the other two heads that attend selectively.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from qrhead_rag.detect.recording import RecordedExample
from qrhead_rag.evaluate.metrics import ndcg_of_scores

Criterion: TypeAlias = Literal["contrastive", "mass", "ndcg"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

TEMPERATURE = 0.01
"""The published heads of CoRe were found at .001 (Mistral, Granite) and .1 (Llama, Phi)."""


def mass(scores: Tensor, relevant: Sequence[int]) -> Tensor:
    """Score on the relevant documents, summed. # (heads, documents) -> (heads,)

    >>> mass(torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]]), [0, 2]).tolist()
    [5.0, 3.0]
    """
    return scores[:, list(relevant)].sum(dim=-1)


def contrastive(scores: Tensor, relevant: Sequence[int], temperature: float = TEMPERATURE) -> Tensor:
    """Mass on the relevant documents of a softmax over all of the list. # (heads, documents) -> (heads,)

    >>> contrastive(torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 9.0]]), [1, 3], temperature=0.1).tolist()
    [0.5, 1.0]
    """
    return torch.softmax(scores.double() / temperature, dim=-1)[:, list(relevant)].sum(dim=-1).float()


def head_values(recorded: RecordedExample, criterion: Criterion, temperature: float = TEMPERATURE) -> Tensor:
    """What every head is worth on an example. # (heads,)"""
    relevant = recorded.example.relevant
    by_name: dict[Criterion, Callable[[], Tensor]] = {
        "mass": lambda: mass(recorded.scores, relevant),
        "ndcg": lambda: ndcg_of_scores(recorded.scores, recorded.example),
        "contrastive": lambda: contrastive(recorded.scores, relevant, temperature),
    }
    return by_name[criterion]()
