"""An HTTP face of an engine: POST a request as JSON, and lines of JSON come as they are made.

    python experiments/speed/http_engine.py smollm2-135m 256000000 8080
    curl -N localhost:8080 -d '{"prompt": "Once upon a time", "max_new_tokens": 40}'

One thread alone has the engine. A client that hangs up cancels its request.
"""

import argparse
import http.server
import json
import queue
import threading
import uuid
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jaxmem as jm


class Front:
    """An engine of which other threads ask what its own thread does between two steps."""

    def __init__(self, model: jm.models.Model, nbytes: int):
        self.engine = jm.serving.Engine(model, nbytes=nbytes)
        self.calls: queue.Queue = queue.Queue()
        self.pieces: dict[str, queue.Queue] = {}

    def call(self, fn: Callable, *args: Any) -> Any:
        """`fn(*args)`, which the thread of the engine runs."""
        result: futures.Future = futures.Future()
        self.calls.put((result, fn, args))
        return result.result()

    def add(self, fields: dict) -> tuple[str, queue.Queue]:
        request = jm.serving.GenerationRequest(**{**fields, "id": uuid.uuid4().hex})
        self.engine.add(request)
        self.pieces[request.id] = queue.Queue()
        return request.id, self.pieces[request.id]

    def cancel(self, id: str) -> None:
        self.engine.cancel(id)
        self.pieces.pop(id, None)

    def serve(self) -> None:
        while True:
            while not self.calls.empty() or not self.engine.at_work:
                result, fn, args = self.calls.get()
                try:
                    result.set_result(fn(*args))
                except Exception as error:
                    result.set_exception(error)
            for piece in self.engine.step():
                self.pieces[piece.id].put(piece)


def handler(front: Front) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                length = min(int(self.headers.get("Content-Length", 0)), 10**6)
                id, pieces = front.call(front.add, json.loads(self.rfile.read(length)))
            except (ValueError, TypeError) as error:
                return self.send_error(400, str(error).splitlines()[0])
            try:
                self.send_response(200)
                self.end_headers()
                answer = None
                while answer is None:
                    piece = pieces.get()
                    answer = piece.answer
                    line = {"text": piece.text, **({"answer": answer.fields()} if answer else {})}
                    self.wfile.write(json.dumps(line).encode() + b"\n")
            finally:
                front.call(front.cancel, id)

    return Handler


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("nbytes", type=int)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    front = Front(jm.models.load(arguments.model), arguments.nbytes)
    threading.Thread(target=front.serve, daemon=True).start()
    address = ("localhost", arguments.port)
    http.server.ThreadingHTTPServer(address, handler(front)).serve_forever()
