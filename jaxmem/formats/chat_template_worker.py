"""Renders chat templates in a process of its own, which `chat_template.py` starts.

It reads one JSON object from stdin and writes one to stdout. It imports nothing of this package, so
that it starts fast, and it limits its own memory and processor time: a template is a program that
came with a checkpoint.
"""

import datetime
import json
import sys

if __name__ == "__main__":
    # An isolated Python finds no package of the user or of PYTHONPATH, and jinja2 may be one.
    sys.path += [folder for folder in json.loads(sys.argv[1]) if folder]

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationBlock(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it changes nothing."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def limit(nbytes: int, seconds: int) -> None:
    """Limits this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_AS, nbytes), (resource.RLIMIT_CPU, seconds)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard < 0 else min(most, hard), hard))


def environment() -> ImmutableSandboxedEnvironment:
    """What published templates are written for, as transformers documents it."""
    extensions = ["jinja2.ext.loopcontrols", GenerationBlock]
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)

    def refuse(message):
        raise TemplateError(message)

    def to_json(value, indent=None, ensure_ascii=False, separators=None, sort_keys=False):
        return json.dumps(
            value,
            indent=indent,
            ensure_ascii=ensure_ascii,
            separators=separators,
            sort_keys=sort_keys,
        )

    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


def render(template: str, variables: list[dict], most: int) -> list[str]:
    """The text of each of the variables, of at most `most` characters."""
    compiled, texts = environment().from_string(template), []
    for names in variables:
        pieces, size = [], 0
        for piece in compiled.generate(names):
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise ValueError(f"the text is longer than {most} characters")
        texts.append("".join(pieces))
    return texts


def main() -> None:
    asked = json.load(sys.stdin)
    limit(asked["bytes"], asked["seconds"])
    try:
        answer = {"texts": render(asked["template"], asked["variables"], asked["characters"])}
    except MemoryError:
        answer = {"error": f"it takes more than {asked['bytes']} bytes of memory"}
    except RecursionError:
        answer = {"error": "it is nested too deeply"}
    except Exception as error:
        answer = {"error": f"{error}" or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
