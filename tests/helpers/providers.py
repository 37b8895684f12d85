"""A loopback server that refuses what Anthropic and OpenAI refuse of a conversation, and counts the rest in words.

The rules are those of the error messages that the providers give: which messages may begin, and which tool results must
follow which calls. Everything else of a request is accepted.
"""

import json
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from urllib.error import HTTPError


class RefusedError(ValueError):
    """What a provider says to half a pair."""


def check_anthropic(request):
    """Messages API."""
    messages = request["messages"]
    if not messages or messages[0]["role"] != "user":
        raise RefusedError("messages: first message must use the user role")
    turns = []
    for role, group in groupby(messages, key=lambda message: message["role"]):
        if role not in ("user", "assistant"):
            raise RefusedError(f"messages: unexpected role {role!r}")
        contents = [message["content"] for message in group]
        if not all(contents):
            raise RefusedError("messages: all messages must have non-empty content")
        turns.append([block for content in contents for block in _blocks(content)])
    every_call = [block["id"] for blocks in turns for block in blocks if block["type"] == "tool_use"]
    if len(every_call) != len(set(every_call)):
        raise RefusedError("messages: `tool_use` ids must be unique")
    waiting = set()
    for blocks in [*turns, []]:
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if unexpected := set(results) - waiting:
            raise RefusedError(f"messages: unexpected `tool_use_id` found in `tool_result` blocks: {unexpected}")
        if unanswered := waiting - set(results):
            raise RefusedError(f"messages: `tool_use` ids were found without `tool_result` blocks after: {unanswered}")
        if [block["type"] == "tool_result" for block in blocks] != sorted(
            (block["type"] == "tool_result" for block in blocks), reverse=True
        ):
            raise RefusedError("messages: `tool_result` blocks must come first")
        if any(block["type"] == "text" and not block["text"].strip() for block in blocks):
            raise RefusedError("messages: text content blocks must be non-empty")
        waiting = {block["id"] for block in blocks if block["type"] == "tool_use"}


def check_openai_chat(request):
    """Chat Completions API."""
    waiting = set()
    if not request["messages"]:
        raise RefusedError("[] is too short - 'messages'")
    for message in [*request["messages"], {"role": "end"}]:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise RefusedError(
                    "messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
                )
            waiting.remove(message["tool_call_id"])
            continue
        if waiting:
            raise RefusedError("an assistant message with 'tool_calls' must be followed by tool messages for each")
        waiting = {call["id"] for call in message.get("tool_calls") or []}


def check_openai_responses(request):
    """Responses API."""
    items = request["input"]
    calls = [item["call_id"] for item in items if item.get("type") == "function_call"]
    outputs = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    if missing := set(calls) - set(outputs):
        raise RefusedError(f"No tool output found for function call {missing}")
    if unknown := set(outputs) - set(calls):
        raise RefusedError(f"No tool call found for function call output with call_id {unknown}")


ROUTES = {
    "/v1/messages": check_anthropic,
    "/v1/messages/count_tokens": check_anthropic,
    "/v1/chat/completions": check_openai_chat,
    "/v1/responses": check_openai_responses,
}

ANSWERS = {
    "/v1/messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "loopback",
        "content": [{"type": "text", "text": "so it is"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
    "/v1/chat/completions": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "loopback",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "so it is", "refusal": None},
            }
        ],
    },
    "/v1/responses": {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "model": "loopback",
        "status": "completed",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    },
}


def count_words(request):
    """What a request costs: a fixed part, and the words of all that it holds."""
    return 7 + len(json.dumps(request).split())


class Loopback:
    """The running server.

    Attributes:
        url: where it listens.
        requests: the path and the body of every request, in order.
    """

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.requests = []

    def post(self, path, body):
        """The answer to a request, by the standard library.

        Raises:
            RefusedError: the answer is 400.
        """
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise RefusedError(error.read().decode()) from None


@contextmanager
def loopback():
    """A server for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: two of them wait for each other

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            running.requests.append((self.path, body))
            try:
                ROUTES[self.path](body)
            except RefusedError as error:
                self._answer(400, {"type": "error", "error": {"type": "invalid_request_error", "message": str(error)}})
            else:
                self._answer(200, ANSWERS.get(self.path) or {"input_tokens": count_words(body)})

        def _answer(self, status, answer):
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running = Loopback(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def to_anthropic(messages):
    """A request of the Messages API, from messages of LangChain."""
    system, sent = [], []
    for message in messages:
        if message.type == "system":
            system.append(message.text)
            continue
        content = _blocks(message.content)
        if message.type == "tool":
            content = [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.text}]
        written = {block.get("id") for block in content}
        for call in getattr(message, "tool_calls", []):
            if call["id"] not in written:
                content.append({"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["args"]})
        sent.append({"role": "assistant" if message.type == "ai" else "user", "content": content})
    return {"model": "loopback", "max_tokens": 9, "messages": sent, **({"system": "\n".join(system)} if system else {})}


def to_openai_responses(messages):
    """A request of the Responses API, from messages of LangChain whose blocks are its items."""
    items = []
    for message in messages:
        role = {"ai": "assistant", "human": "user", "system": "developer"}.get(message.type)
        blocks = _blocks(message.content)
        if message.type == "tool":
            blocks = [{"type": "function_call_output", "call_id": message.tool_call_id, "output": message.text}]
        for block in blocks:
            is_item = block["type"].startswith("function_call")
            items.append(block if is_item else {"role": role, "content": block["text"]})
        for call in getattr(message, "tool_calls", []):
            arguments = json.dumps(call["args"])
            items.append({"type": "function_call", "call_id": call["id"], "name": call["name"], "arguments": arguments})
    return {"model": "loopback", "input": items}


def _blocks(content):
    return [{"type": "text", "text": content}] * bool(content) if isinstance(content, str) else list(content)
