"""A sentence-embedding model as a reranker: the cosine of query and passage, the usual baseline.

Reads plain transformers encoders, with mean pooling, and from the folder layout of sentence-transformers (modules.json)
the pooling (mean or first token), length limit and prompts. It does not train.
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
    """Embeds texts; `scores` compares a query with passages. Embeddings are cached by text.

    Args:
        path: folder of the model.
        batch_size: texts in one forward pass.
        device: of the model.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a pooling other than mean or first token, or layers after it; the message names them.

    >>> EmbeddingModel("no/such/model")
    Traceback (most recent call last):
    FileNotFoundError: no folder no/such/model; expected one with an embedding model in it (config.json, weights)
    """

    def __init__(self, path: str | Path, batch_size: int = 32, device: str | torch.device = "cpu") -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no folder {folder}; expected one with an embedding model in it (config.json, weights)"
            )
        self._batch_size = batch_size
        self._cache: dict[str, Tensor] = {}
        self._first_token = _pools_first_token(folder)
        prompts = _read(folder / "config_sentence_transformers.json").get("prompts") or {}
        self._query_prompt = str(prompts.get("query", ""))
        self._document_prompt = str(prompts.get("document", prompts.get("passage", "")))
        with quiet():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
            self._model: Any = model.to(device).eval()
        limits = [_read(folder / "sentence_bert_config.json").get("max_seq_length"), self._tokenizer.model_max_length]
        limits.append(getattr(self._model.config, "max_position_embeddings", None))
        self._max_length = min(limit for limit in limits if limit)

    def scores(self, query: str, passages: Sequence[str]) -> list[float]:
        """Cosine of the query with each passage."""
        if not passages:
            return []
        query_vector = self.embed([self._query_prompt + query])[0]  # (size,)
        vectors = self.embed([self._document_prompt + passage for passage in passages])  # (passages, size)
        cosines: list[float] = (vectors @ query_vector).tolist()
        return cosines

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of unit length. Shape: (texts, size)"""
        # texts of similar length share a batch, which saves padding
        new = sorted({text for text in texts if text not in self._cache}, key=len)
        for start in range(0, len(new), self._batch_size):
            batch = new[start : start + self._batch_size]
            self._cache |= dict(zip(batch, self._run(batch), strict=True))
        return torch.stack([self._cache[text] for text in texts])

    @torch.inference_mode()
    def _run(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(self._model.device)
        hidden = self._model(**tokens).last_hidden_state  # (texts, tokens, size)
        pooled = hidden[:, 0] if self._first_token else _mean(hidden, tokens["attention_mask"])
        return torch.nn.functional.normalize(pooled.float(), dim=-1).cpu()


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are not padding. Shape: (batch, tokens, size) -> (batch, size)"""
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
