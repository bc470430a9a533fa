"""English prose that every Python has: the text of the language reference inside CPython."""

import re

SOURCE = "pydoc_data.topics, the Python reference's text inside CPython"


def prose() -> str:
    """The paragraphs of running text in `pydoc_data.topics`, without markup, code and tables.

    The text differs a little between Python versions.

    Example:
        >>> text = prose()
        >>> len(text) > 100_000, "::=" in text
        (True, False)
    """
    from pydoc_data.topics import topics

    found = []
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            if re.match(r"[A-Z]", block) and len(block) > 200 and "\n " not in block:
                plain = re.sub(r"[*`\"]", "", " ".join(block.split()))
                found.append(plain)
    return "\n\n".join(found)
