"""Messages made a prompt, and answered."""

import pytest
from chat_models import chatting

from jaxmem.models import chat_prompt, generate


def test_an_answer_is_generated_after_the_prompt_of_the_template():
    m = chatting()
    answer = m.chat([{"role": "user", "content": "CD"}], variables={"end": "E"}, max_new_tokens=3)
    assert answer.prompt.tolist() == [[1, 2, 3, 4]]  # no special token but the template's
    assert (answer.ids == generate(m, [1, 2, 3, 4], max_new_tokens=3).ids).all()
    assert answer.text == "".join(map(m.tokenizer.id_to_token, answer.ids[0]))


def test_tokens_are_those_of_tokenizer_config_json():
    files = {"tokenizer_config.json": {"bos_token": {"content": "F"}, "pad_token": None}}
    assert chat_prompt(chatting(hf_files=files), "CD") == "FCD"


@pytest.mark.parametrize(
    ("options", "messages", "error", "message"),
    [
        ({"template": None}, "Hello", ValueError, "here has no chat template"),
        ({"tokenizer": None}, "Hello", ValueError, "here has no tokenizer"),
        ({}, [], ValueError, "no messages"),
        ({}, ["Hello"], TypeError, r'a message is \'Hello\', expected {"role": "user"'),
        ({}, {"role": "user"}, TypeError, "expected a text or a list of messages"),
        ({"template": "{{ 1 / 0 }}"}, "Hello", ValueError, "here: the chat template fails: div"),
    ],
)
def test_what_is_no_chat_is_refused(options, messages, error, message):
    with pytest.raises(error, match=message):
        chatting(**options).chat(messages)
