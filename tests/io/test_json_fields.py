"""A field of the wrong type, value or name is one error that names the file, field and value."""

import os

import pytest

from jaxmem.io.json_fields import JsonFields, read_object


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"3", b'{"a": ' + b"[" * 100_000, b"\xff\xfe\xff", b'{"a": 1e}'],
)
def test_a_file_that_holds_no_object_is_named(data, tmp_path):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"config\.json (is no JSON|holds a)"):
        read_object(tmp_path / "config.json")


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_object(tmp_path / "config.json") == {"a": 1}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is no regular file"):
        read_object(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"other\.json is missing"):
        read_object(tmp_path / "other.json")


@pytest.mark.parametrize("value", ["2", 2.0, True, 0, 2**31, [2], {}, None, float("nan")])
def test_an_integer_is_an_integer_in_its_range(value):
    with pytest.raises(ValueError, match=r"^text\.layers is"):
        JsonFields({"layers": value}, "text.").integer("layers")


@pytest.mark.parametrize("value", ["1e-5", True, 0, -1.0, float("nan"), float("inf"), [1.0]])
def test_a_number_is_a_finite_number_above_its_bound(value):
    with pytest.raises(ValueError, match=r"eps is .*expected a finite number above 0"):
        JsonFields({"eps": value}).number("eps", above=0)


def test_a_number_is_below_its_bound():
    with pytest.raises(ValueError, match="eps is 1, expected a finite number above 0 and below 1"):
        JsonFields({"eps": 1}).number("eps", above=0, below=1)


@pytest.mark.parametrize(
    "read, message",
    [
        (lambda f: f.boolean("x", False), "x is 1, expected true or false"),
        (lambda f: f.text("x"), "x is 1, expected a string"),
        (lambda f: f.texts("x"), "x is 1, expected a list of strings"),
        (lambda f: f.object("x"), "x is 1, expected a JSON object"),
        (lambda f: f.expect("x", True), "x is 1, expected True, which is what is computed here"),
        (lambda f: f.objects("y"), r"y\.z is \[\], expected a JSON object"),
        (lambda f: f.integers("w"), r"w is \[1, 'a'\], expected an integer or a list"),
    ],
)
def test_every_type_is_checked(read, message):
    with pytest.raises(ValueError, match=message):
        read(JsonFields({"x": 1, "y": {"z": []}, "w": [1, "a"]}))


def test_null_reads_as_missing_and_what_is_off_or_harmless_is_passed_over():
    fields = JsonFields({"a": None, "b": {"c": 1}, "off": False, "empty": [], "drop_p": 0.1})
    assert fields.integer("a", 7) == 7 and fields.integers("a") == ()
    inner = fields.object("b")
    with pytest.raises(ValueError, match=r"b\.c is 1, a field that is not known"):
        fields.refuse_unread(harmless="drop_.*")
    inner.ignore("c")
    fields.refuse_unread(harmless="drop_.*")
