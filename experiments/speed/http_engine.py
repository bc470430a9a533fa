"""An HTTP face of an engine: POST a request as JSON, and lines of JSON come as they are made.

    python experiments/speed/http_engine.py smollm2-135m 256000000 8080
    curl -N localhost:8080 -d '{"prompt": "Once upon a time", "max_new_tokens": 40}'

One thread steps the engine. A client that hangs up cancels its request.
"""

import argparse
import http.server
import json
import queue
import threading
import uuid

import jaxmem as jm


class Front:
    """An engine that several threads add requests to."""

    def __init__(self, model: jm.models.Model, nbytes: int):
        self.engine, self.lock = jm.serving.Engine(model, nbytes=nbytes), threading.Condition()
        self.pieces: dict[str, queue.Queue] = {}

    def add(self, fields: dict) -> tuple[str, queue.Queue]:
        request = jm.serving.GenerationRequest(**{**fields, "id": uuid.uuid4().hex})
        with self.lock:
            self.engine.add(request)
            self.pieces[request.id] = queue.Queue()
            self.lock.notify()
            return request.id, self.pieces[request.id]

    def cancel(self, id: str) -> None:
        with self.lock:
            self.engine.cancel(id)
            self.pieces.pop(id, None)

    def serve(self) -> None:
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.engine.at_work)
                for piece in self.engine.step():
                    self.pieces[piece.id].put(piece)


def handler(front: Front) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                length = min(int(self.headers.get("Content-Length", 0)), 10**6)
                id, pieces = front.add(json.loads(self.rfile.read(length)))
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
                front.cancel(id)

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
