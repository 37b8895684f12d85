"""The `model` and `tokenizer` of the examples in docstrings: tiny ones, with random weights."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _model_for_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    if isinstance(request.node, pytest.DoctestItem) and "model" not in doctest_namespace:
        from tests.helpers.tiny import tiny_model, tiny_tokenizer

        doctest_namespace.update(model=tiny_model(), tokenizer=tiny_tokenizer())
