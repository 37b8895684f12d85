"""A sentence-embedding model as a reranker: the cosine of query and passage. The baseline most systems run already.

Reads plain transformers encoders, with mean pooling, and the folder layout of sentence-transformers (modules.json) as
far as it is needed: mean or first-token pooling, length limit, prompts. It does not train, and has no other pooling.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from qrhead_rag.models.quiet import quiet


class EmbeddingModel:
    """Embeds texts; `scores` compares a query with passages. What was embedded once is kept.

    Args:
        path: folder of the model.
        batch_size: texts run at once.
        device: where it runs.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a pooling other than mean or first token, or layers after it; the message names them.
    """

    def __init__(self, path: str | Path, batch_size: int = 32, device: str | torch.device = "cpu") -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no folder {folder}; expected one with an embedding model in it (config.json, weights)"
            )
        self._batch_size = batch_size
        self._known: dict[str, Tensor] = {}
        self._first_token = _pools_first_token(folder)
        prompts = _read(folder / "config_sentence_transformers.json").get("prompts") or {}
        self._query_prompt = str(prompts.get("query", ""))
        self._document_prompt = str(prompts.get("document", prompts.get("passage", "")))
        with quiet():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            found = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
            self._model: Any = found.to(device).eval()
        limits = [_read(folder / "sentence_bert_config.json").get("max_seq_length"), self._tokenizer.model_max_length]
        limits.append(getattr(self._model.config, "max_position_embeddings", None))
        self._max_length = min(limit for limit in limits if limit)

    def scores(self, query: str, passages: Sequence[str]) -> list[float]:
        """Cosine of the query with each passage."""
        if not passages:
            return []
        one = self.embed([self._query_prompt + query])  # (1, size)
        many = self.embed([self._document_prompt + passage for passage in passages])  # (passages, size)
        found: list[float] = (many @ one[0]).tolist()
        return found

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length one. # (texts, size)"""
        # texts of like length together, so that little is spent on padding
        new = sorted({text for text in texts if text not in self._known}, key=len)
        for start in range(0, len(new), self._batch_size):
            batch = new[start : start + self._batch_size]
            self._known |= dict(zip(batch, self._run(batch), strict=True))
        return torch.stack([self._known[text] for text in texts])

    @torch.inference_mode()
    def _run(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(self._model.device)
        hidden = self._model(**tokens).last_hidden_state  # (texts, tokens, size)
        pooled = hidden[:, 0] if self._first_token else _mean(hidden, tokens["attention_mask"])
        return torch.nn.functional.normalize(pooled.float(), dim=-1).cpu()


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are no padding. # (batch, tokens, size) -> (batch, size)"""
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _pools_first_token(folder: Path) -> bool:
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in _read(folder / "modules.json") or []}
    unknown = sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"})
    modes = ["mean_tokens"]
    if "Pooling" in modules:
        config = _read(folder / modules["Pooling"] / "config.json")
        modes = [name[13:] for name, value in config.items() if name.startswith("pooling_mode_") and value]
    if unknown or modes not in (["mean_tokens"], ["cls_token"]):
        raise ValueError(
            f"{folder} pools by {modes} and has the layers {unknown}; this baseline knows mean_tokens or cls_token and "
            "nothing after. Wrap the model in a function of query and texts and name it module:function"
        )
    return modes == ["cls_token"]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
