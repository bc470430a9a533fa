"""holds_words: whether a text has one of the words of a list, such as one of insults."""

import re
from collections.abc import Sequence


def holds_words(text: str, words: Sequence[str]) -> bool:
    """Whether one of the words stands in the text as a whole, in capitals or not.

    In a language without spaces between words, such as Chinese, a part of a text is enough.

    Example:
        >>> holds_words("You FOOL!", ["fool"]), holds_words("foolish", ["fool"])
        (True, False)
        >>> holds_words("你这个笨蛋", ["笨蛋"])
        True
    """
    for word in words:
        end = r"(?![^\W_])" if word[-1:].isascii() else ""
        start = r"(?<![^\W_])" if word[:1].isascii() else ""
        if re.search(start + re.escape(word) + end, text, re.IGNORECASE):
            return True
    return False
