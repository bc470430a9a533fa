"""A tiny model that writes letters, with a chat template."""

import dataclasses

from reference_models import reference

from jaxmem.architectures import llama
from jaxmem.models import Model


class Letters:
    """A tokenizer with the two methods that generate calls."""

    def encode(self, text):
        return type("Encoding", (), {"ids": [ord(c) - 65 for c in text]})

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}{{ end }}"


class Tokens(Letters):
    """Letters whose text also names the first token."""

    def encode(self, text, add_special_tokens=True):
        return super().encode("B" * add_special_tokens + text)

    def id_to_token(self, i):
        return chr(65 + i)


def chatting(template=TEMPLATE, tokenizer=Tokens(), **fields):  # noqa: B008
    config, params, _ = reference("llama2", llama)
    config = dataclasses.replace(config, eos=(), bos=1)
    return Model(config, params, tokenizer, "here", chat_template=template, **fields)
