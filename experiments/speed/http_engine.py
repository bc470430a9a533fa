"""An HTTP face of an engine: POST a request as JSON, and lines of JSON come as they are made.

    python experiments/speed/http_engine.py smollm2-135m 256000000 8080
    curl -N localhost:8080 -d '{"prompt": "Once upon a time", "max_new_tokens": 40}'

One thread alone has the engine; it takes orders between two steps. A client that hangs up cancels
its request.
"""

import http.server
import json
import queue
import sys
import threading
import uuid

import jaxmem as jm

ORDERS: queue.Queue = queue.Queue()  # (id, the fields of a new request or None to cancel, replies)


def answer_orders(engine: jm.serving.Engine) -> None:
    """Steps without end. Replies to an order are an error, or the pieces of its answer."""
    clients: dict[str, queue.Queue] = {}
    while True:
        while not ORDERS.empty() or not engine.at_work:
            id, fields, replies = ORDERS.get()
            if fields is None:
                engine.cancel(id)
                clients.pop(id, None)
                continue
            try:
                engine.add(jm.serving.GenerationRequest(**{**fields, "id": id}))
                clients[id] = replies
            except (ValueError, TypeError, NotImplementedError) as error:
                replies.put(error)
        for piece in engine.step():
            clients[piece.id].put(piece)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        id, replies = uuid.uuid4().hex, queue.Queue()
        try:
            length = min(int(self.headers.get("Content-Length", 0)), 10**6)
            ORDERS.put((id, dict(json.loads(self.rfile.read(length))), replies))
            if isinstance(piece := replies.get(), Exception):
                raise piece
        except (ValueError, TypeError, NotImplementedError) as error:
            return self.send_error(400, str(error).splitlines()[0])
        try:
            self.send_response(200)
            self.end_headers()
            while piece:
                line = {"text": piece.text}
                line |= {"answer": piece.answer.fields()} if piece.answer else {}
                self.wfile.write(json.dumps(line).encode() + b"\n")
                piece = None if piece.answer else replies.get()
        finally:
            ORDERS.put((id, None, None))


if __name__ == "__main__":
    model, nbytes, port = sys.argv[1:]
    engine = jm.serving.Engine(jm.models.load(model), nbytes=int(nbytes))
    threading.Thread(target=answer_orders, args=(engine,), daemon=True).start()
    http.server.ThreadingHTTPServer(("localhost", int(port)), Handler).serve_forever()
