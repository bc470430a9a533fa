"""Chat templates: the Jinja text of a checkpoint that makes messages a prompt.

A template is a program from a stranger. It runs in Jinja's sandbox, in a process of its own whose
memory and time are limited.
"""

import contextlib
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_TEMPLATE = 2**20  # characters of a template
MOST_TEXT = 2**24  # characters of what it writes
MOST_BYTES = 2**30  # address space of the process
MOST_SECONDS = 5  # of processor time; the clock may show six times as many
_WORKER = pathlib.Path(__file__).with_name("chat_template_worker.py")
_READY: list[subprocess.Popen] = []  # processes that wait for what they are asked


@contextlib.contextmanager
def started() -> Iterator[None]:
    """A process for one `render` inside, which starts while the caller does other things."""
    if importlib.util.find_spec("jinja2") is None:  # `render` says so, if it is called
        yield
        return
    process = _process()
    _READY.append(process)
    try:
        yield
    finally:
        if process in _READY:
            _READY.remove(process)
            process.kill()
            process.communicate()


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
    with _READY.pop() if _READY else _process() as process:
        try:
            printed, said = process.communicate(text.encode(), timeout=6 * MOST_SECONDS)
        except BaseException as error:  # also KeyboardInterrupt
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise ValueError(f"the chat template takes more than {6 * MOST_SECONDS} s") from None
    try:
        answer = json.loads(printed)
    except ValueError:  # the system ended the process at a limit
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        code, seconds = process.returncode, MOST_SECONDS
        raise ValueError(
            f"the chat template ends its process with {code}; more than {seconds} s of processor "
            f"time or {MOST_BYTES} bytes of memory do that. {last}".rstrip(". ")
        ) from None
    if "error" in answer:
        raise ValueError(f"the chat template fails: {answer['error']}")
    return answer["texts"]


def _process() -> subprocess.Popen:
    """A process that renders what it reads."""
    command = [sys.executable, "-I", "-X", "utf8", str(_WORKER), json.dumps(sys.path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
