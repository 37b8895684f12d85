"""A retriever as data: the options that load an equal one. Neither weights nor a token of the hub are among them."""

from typing import Any

from qrhead_rag.core.heads import Mode, shipped_head_sets
from qrhead_rag.models.loading import LoadedModel
from qrhead_rag.ranking.options import ListOptions
from qrhead_rag.ranking.passage_store import PassageStore

_IN_MEMORY = "in-memory:"  # prefix of a model without hub id or folder, which cannot be loaded again


def loading_options(
    loaded: LoadedModel, mode: Mode, options: ListOptions, store: PassageStore | None
) -> dict[str, Any]:
    """Options with which `QRRetriever.from_pretrained` loads an equal retriever.

    A model without hub id or folder has a name that `check_loadable` refuses.
    """
    shipped = {heads.model for heads in shipped_head_sets()}
    unnamed = not loaded.model.name_or_path and loaded.name not in shipped
    return {
        **loaded.source,
        **options.model_dump(exclude_defaults=True),
        "model": f"{_IN_MEMORY}{loaded.name}" if unnamed else loaded.name,
        "heads": loaded.heads,
        "mode": mode,
        **({} if store is None else {"store": store.choice}),
    }


def is_in_memory(model: object) -> bool:
    """Whether this is the name of a model that cannot be loaded again."""
    return str(model).startswith(_IN_MEMORY)


def check_loadable(model: str | None, owner: object, remedy: str) -> None:
    """Refuse a model that cannot be loaded again.

    Args:
        model: a name that `loading_options` gave, or any other.
        owner: what has it.
        remedy: what the caller can do about it.

    Raises:
        ValueError: names the model, its owner and the remedy.
    """
    if model is not None and is_in_memory(model):
        raise ValueError(
            f"the model of this {type(owner).__name__} was a {model.removeprefix(_IN_MEMORY)} that lived in memory "
            f"only, so it cannot be loaded again; {remedy}"
        )
