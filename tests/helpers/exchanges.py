"""A conversation of LangChain messages on five subjects, and how tests trim it: tokens are words."""

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_qrhead import trim_messages_by_relevance


def words(messages: list[BaseMessage]) -> int:
    return sum(len(message.text.split()) for message in messages)


def exchange(topic):
    """A question and its answer: six words."""
    return [HumanMessage(f"about {topic} please"), AIMessage(f"here is {topic}")]


APPLES, BEARS, CLOUDS, DOORS, EELS = (exchange(topic) for topic in ("apples", "bears", "clouds", "doors", "eels"))
HISTORY = [*APPLES, *BEARS, *CLOUDS, *DOORS, *EELS]
QUESTION = HumanMessage("now bears or doors")


def trim(messages, scorer, query=None, **options):
    return trim_messages_by_relevance(
        messages, query, **{"max_tokens": 18, "token_counter": words, "keep_last": 1, "scorer": scorer, **options}
    )
