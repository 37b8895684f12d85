"""A tokenizer that reads text as characters alone: no control token can come out of what a caller wrote."""

import json

from tokenizers import Tokenizer


def without_added_tokens(backend: Tokenizer, added: set[str]) -> Tokenizer:
    """A copy that cannot produce an added token, however it is spelled in the text.

    `split_special_tokens` is not enough: it leaves added tokens that are not marked special. The unknown token keeps
    its name, since models without byte fallback need one.
    """
    state = json.loads(backend.to_str())
    state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    model = state["model"]
    renamed = sorted(added - {model.get("unk_token")})
    unreachable = {text: f"\ue000{number}\ue000" for number, text in enumerate(renamed)}
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {unreachable.get(token, token): index for token, index in vocab.items()}
    else:
        model["vocab"] = [[unreachable.get(token, token), score] for token, score in vocab]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if not unreachable.keys() & {*pair, "".join(pair)}]
    return Tokenizer.from_str(json.dumps(state))
