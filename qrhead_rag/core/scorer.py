"""The whole idea on one page: a query and texts in, one score a text out. Nothing is trained, nothing is generated.

A few attention heads of a language model look from a question to the text that answers it. Over the prompt
`text 1 | text 2 | … | instruction, query`, for a selected head and a token t of a text d:

    (1)  a(t) = mean over the rows of the query span of softmax(q·k·scale)[row, t]    (the model's own attention)
    (2)  c(t) = a(t | query) - a(t | null query), summed over the selected heads
    (3)  s(d) = sum of c(t) over t in d with c(t) > mean(c) - 2·std(c)                (mean, unbiased std over d)

(2) is the calibration of In-Context Re-ranking (Chen et al., arXiv 2410.02642): "N/A" measures what a token attracts
whatever is asked. Reading selected heads alone is QRHead (Zhang et al., EMNLP 2025, arXiv 2506.09944).

`QRRetriever(mode="listwise")` gives these scores; it adds what is kept between queries, and lists of any length.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qrhead_rag.core.attention import HeadReader, Rows
from qrhead_rag.core.heads import Head
from qrhead_rag.core.prompt import NULL_QUERY, PromptTokenizer
from qrhead_rag.core.scoring import calibrate, document_of_tokens, document_scores, masked
from qrhead_rag.core.template import PromptTemplate


class HeadScorer:
    """Scores texts by the attention of selected heads.

    Args:
        model: a decoder of transformers; it is left as it is.
        tokenizer: its fast tokenizer.
        heads: the selected heads, (layer, head) pairs.

    >>> scorer = HeadScorer(model, tokenizer, heads=[(1, 0), (2, 3)])
    >>> scores = scorer.score("Who counts the ships?", ["The keeper counts the ships.", "Bread is baked at dawn."])
    >>> len(scores)
    2
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: Sequence[Head]) -> None:
        self._reader = HeadReader(model, heads)
        self._tokenizer = PromptTokenizer(tokenizer)
        self._template = PromptTemplate.for_tokenizer(tokenizer)

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """s(d) of each text, in the caller's order. Scores compare within one list only."""
        # Two prompts that differ from the query span on.
        prompt = self._tokenizer.prompt(self._template, texts, query)
        null_prompt = self._tokenizer.prompt(self._template, texts, NULL_QUERY)
        start = prompt.query_start
        # The texts run once. Both query spans read what was kept of them, and do not see each other.
        cache = self._reader.prefill(torch.tensor([prompt.ids[:start]]))
        parts = [Rows(prompt.ids[start:], position=start), Rows(null_prompt.ids[start:], position=start)]
        attention = self._reader.read(cache, parts).cpu()  # (1), (heads, 2, tokens)
        calibrated = calibrate(attention[:, 0], attention[:, 1]).sum(dim=0)  # (2), (tokens,)
        text_of = document_of_tokens(prompt.documents, start)  # which text each token belongs to, (tokens,)
        contributions = masked(calibrated, text_of, len(texts))  # (3): tokens below the threshold count 0
        scores: list[float] = document_scores(contributions, text_of, len(texts)).tolist()
        return scores
