"""Chat templates: what published ones write, and what a hostile one cannot do."""

import importlib.util
import pathlib
import sys

import pytest

from jaxmem.formats import chat_template
from jaxmem.formats.chat_template import render

TURNS = [
    {"role": "user", "content": "Hé"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "5 < 6?"},
]
# The forms of Llama 2 (which refuses turns out of order), of ChatML, and of tools in JSON.
LLAMA2 = """{{ bos_token }}{% for m in messages %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
    {%- else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}"""
CHATML = """{% for m in messages %}
<|im_start|>{{ m.role }}
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}

{% if loop.index == 2 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_published_forms_write_what_transformers_writes():
    names = {"messages": TURNS, "bos_token": "<s>", "eos_token": "</s>"}
    want = "<s>[INST] Hé [/INST] Yes </s>[INST] 5 < 6? [/INST]"
    assert render(LLAMA2, [names, names]) == [want, want]
    want = "<|im_start|>user\nHé<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    names = {"messages": TURNS, "add_generation_prompt": True}
    assert render(CHATML, [names]) == [want + "<|im_start|>assistant\n"]
    tools = '{{ tools | tojson(indent=1) }}{{ strftime_now("%Y") | length }}'
    assert render(tools, [{"tools": [{"é": "<a>"}]}]) == ['[\n {\n  "é": "<a>"\n }\n]4']


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in %}", "fails: Expected an expression"),
        (LLAMA2, "fails: Conversation roles must alternate"),
        ("{{ messages.__class__.mro() }}", "fails: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "fails: access to attribute 'append'"),
        ("{% include '/etc/passwd' %}", "fails: no loader for this environment"),
        ("{% for i in range(1000000) %}x{% endfor %}", "fails: Range too big"),
        ("{{ 'x' * 10**10 }}", "fails: it takes more than 1073741824 bytes"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "longer than 16777216"),
        ("{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2, "of processor time"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "fails: it is nested too deeply"),
        ("x" * 2_000_000, "2000000 characters, expected at most 1048576"),
    ],
)  # fmt: skip
def test_a_template_that_fails_or_would_not_end_is_one_error(template, message, monkeypatch):
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 1)
    with pytest.raises(ValueError, match=message):
        render(template, [{"messages": TURNS[1:], "eos_token": ""}])


def test_jinja_is_found_where_this_process_finds_it(tmp_path, monkeypatch):
    for name in ("jinja2", "markupsafe"):
        found = pathlib.Path(importlib.util.find_spec(name).origin).parent
        (tmp_path / name).symlink_to(found)
    (tmp_path / "pyvenv.cfg").write_text(f"home = {sys.base_exec_prefix}/bin\n")
    bare = tmp_path / "bin" / "python"  # of an environment without packages, as users may have
    bare.parent.mkdir()
    bare.symlink_to(pathlib.Path(sys.executable).resolve())
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    assert render("{{ x }}", [{"x": 1}]) == ["1"]


def test_values_of_other_types_than_json_s_are_refused():
    with pytest.raises(TypeError, match="values of JSON alone: Object of type set"):
        render("{{ x }}", [{"x": {1}}])


def test_a_process_that_was_started_before_renders_once_and_ends_if_it_is_not_asked():
    with chat_template.started():
        (first,) = chat_template._READY
        assert [render("{{ x }}", [{"x": i}]) for i in (1, 2)] == [["1"], ["2"]]
    with chat_template.started():
        (second,) = chat_template._READY
    assert first.returncode == 0 and second.returncode is not None and not chat_template._READY
