"""Chat templates: the Jinja text of a checkpoint that makes messages a prompt.

A template is a program from a stranger. It runs in Jinja's sandbox, in a process of its own whose
memory and time are limited.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

MOST_TEMPLATE = 2**20  # characters of a template
MOST_TEXT = 2**24  # characters of what it writes
MOST_BYTES = 2**30  # address space of the process
MOST_SECONDS = 5  # of processor time; the clock may show six times as many
_WORKER = pathlib.Path(__file__).with_name("chat_template_worker.py")


def render(template: str, variables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text that a chat template makes of each of `variables`.

    Args:
        template: the Jinja text.
        variables: what the template may name, of each conversation: `messages`, `bos_token` and
            others, in types of JSON.

    Raises:
        ValueError: the template is no Jinja, refuses the messages, uses what the sandbox forbids,
            or takes too much memory or time; the message says which.
        TypeError: a variable is of no type of JSON.
        ImportError: the package jinja2 is missing.

    Example:
        >>> turn = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        >>> render(turn, [{"messages": [{"role": "user", "content": "Hello"}]}])
        ['<user>Hello']
        >>> render("{{ ''.__class__.__mro__ }}", [{}])
        Traceback (most recent call last):
        ValueError: the chat template fails: access to attribute '__class__' of 'str' ... unsafe.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ImportError('chat templates want jinja2: pip install "jaxmem[demo]"')
    if len(template) > MOST_TEMPLATE:
        raise ValueError(
            f"the chat template has {len(template)} characters, expected at most {MOST_TEMPLATE}"
        )
    asked: dict[str, Any] = {"template": template, "variables": list(variables)}
    asked |= {"bytes": MOST_BYTES, "seconds": MOST_SECONDS, "characters": MOST_TEXT}
    try:
        text = json.dumps(asked)
    except TypeError as error:
        raise TypeError(f"a chat template takes values of JSON alone: {error}") from error
    command = [sys.executable, "-I", "-X", "utf8", str(_WORKER), json.dumps(sys.path)]
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            capture_output=True,
            timeout=6 * MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the chat template takes more than {6 * MOST_SECONDS} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:  # the system ended the process at a limit
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(
            f"the chat template ends its process with {done.returncode}; more than {MOST_SECONDS} "
            f"s of processor time or {MOST_BYTES} bytes of memory do that. {last}".rstrip(". ")
        ) from None
    if "error" in answer:
        raise ValueError(f"the chat template fails: {answer['error']}")
    return answer["texts"]
