"""Writes src/text/clean/html_entities.txt: the named character references of HTML5, as Python's `html` module has them.

    python tests/python/make_html_entities.py

One reference a line: its name without `&` and `;`, its code points in hexadecimal joined by `+`, and `bare` for the 106 old
ones that are also read without the semicolon. Source: https://html.spec.whatwg.org/multipage/named-characters.html.
"""

import pathlib
from html.entities import html5

OUT = pathlib.Path(__file__).parents[2] / "src/text/clean/html_entities.txt"

lines = []
for name, characters in sorted(html5.items()):
    if name.endswith(";"):
        points = "+".join(f"{ord(c):X}" for c in characters)
        bare = " bare" if name[:-1] in html5 else ""
        lines.append(f"{name[:-1]} {points}{bare}\n")
OUT.write_text("".join(lines))
