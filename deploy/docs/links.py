"""A hook of mkdocs: links from pages to files of the repository become plain text, since the site has no such files."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text without links that lead out of docs/."""
    return _OUTSIDE.sub(r"\1", markdown)
