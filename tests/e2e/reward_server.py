"""What HTTP rewards and model graders ask in these tests: a server of its own thread on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

LABELS = ("terse", "wordy")


class _Handler(BaseHTTPRequestHandler):
    """`/score` gives the share of the answer's digits that the text holds; `/v1/chat/completions` judges by length."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {"/score": self._scored, "/v1/chat/completions": self._judged}[self.path](asked)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass

    def _scored(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {
            "rewards": [
                sum(d in s["output_text"] for d in s["item"]["answer"]) / len(s["item"]["answer"])
                for s in asked["samples"]
            ]
        }

    def _judged(self, asked: dict[str, Any]) -> dict[str, Any]:
        text = asked["messages"][-1]["content"]
        labels = "terse" in json.dumps(asked["response_format"])
        result: Any = LABELS[len(text) > 60] if labels else min(1.0, len(text) / 200)
        message = {"role": "assistant", "content": json.dumps({"result": result})}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }


@contextmanager
def reward_server() -> Iterator[str]:
    """Its `host:port`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
