"""Random conversations that a provider accepts, in the ways that people write tool calls down."""

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

STYLES = ("messages", "anthropic", "openai")


def random_history(rng, style, lead_in=False):
    """A conversation of up to 12 turns, some with steps of parallel tool calls; it ends where a model would be asked.

    Args:
        rng: of `random`.
        style: "messages" has tool messages, "anthropic" tool_use and tool_result blocks, "openai" function_call items.
        lead_in: begin with words of the assistant.
    """
    messages = [SystemMessage("be kind")] * rng.randint(0, 1)
    if rng.random() < 0.3:
        messages.append(HumanMessage("a summary of ships", additional_kwargs={"lc_source": "summarization"}))
    elif lead_in:
        messages += _steps(rng, style, "lead") if rng.random() < 0.5 else []
        messages.append(AIMessage("welcome aboard"))
    turns = rng.randint(1, 12)
    for number in range(turns):
        messages.append(HumanMessage(f"question {number} about {rng.choice(['bears', 'doors', 'eels'])}"))
        for step in range(rng.choice([0, 0, 1, 3])):
            messages += _steps(rng, style, f"{number}.{step}")
        if number < turns - 1:
            messages.append(AIMessage("so it is " * rng.randint(1, 9)))
    return messages


def _steps(rng, style, name):
    """Calls of one message, and their results in one message or several."""
    ids = [f"{name}.{k}" for k in range(rng.randint(1, 3))]
    text = [{"type": "text", "text": "let me see"}] * rng.randint(0, 1)
    if style == "messages":
        calls = [{"name": "look", "args": {"topic": "bears"}, "id": call} for call in ids]
        made, results = (
            AIMessage("let me see", tool_calls=calls),
            [ToolMessage("they sleep", tool_call_id=c) for c in ids],
        )
    elif style == "anthropic":
        calls = [{"type": "tool_use", "id": call, "name": "look", "input": {"topic": "bears"}} for call in ids]
        made = AIMessage([*text, *calls])
        blocks = [{"type": "tool_result", "tool_use_id": call, "content": "they sleep"} for call in ids]
        if rng.random() < 0.5:
            results = [HumanMessage([block]) for block in blocks]
        else:
            results = [HumanMessage([*blocks, *text])]
    else:
        calls = [{"type": "function_call", "call_id": call, "name": "look", "arguments": "{}"} for call in ids]
        made = AIMessage([*text, *calls])
        blocks = [{"type": "function_call_output", "call_id": call, "output": "they sleep"} for call in ids]
        results = [HumanMessage([block]) for block in blocks]
    return [made, *results]
