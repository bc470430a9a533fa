"""fill: a prompt of a template with the fields of an item, such as "Question: {question}"."""

import string
from collections.abc import Mapping
from typing import Any


def fields_of(template: str) -> tuple[str, ...]:
    """The names of the fields in a template; `{{` and `}}` are braces.

    Raises:
        ValueError: a field is no plain name, such as `{0}`, `{a.b}` or `{a!r}`, or a brace is left
            open.

    Example:
        >>> fields_of("Question: {question}\\nAnswer:")
        ('question',)
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the template {template!r}: {error}") from error
    names = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise ValueError(f"the template {template!r} has the field {name!r}, expected a name")
        names.append(name)
    return tuple(dict.fromkeys(names))


def fill(template: str, item: Mapping[str, Any]) -> str:
    """The template with the item's values in its fields.

    Raises:
        ValueError: the item has no such field; names those that it has.

    Example:
        >>> fill("{a} and {b}", {"a": 1, "b": 2})
        '1 and 2'
    """
    missing = [name for name in fields_of(template) if name not in item]
    if missing:
        raise ValueError(
            f"the template {template!r} wants the field {missing[0]!r}; the item has "
            f"{', '.join(item) or 'none'}"
        )
    return template.format_map(item)
