"""Text that somebody hostile may have written, made harmless for each format. HTML is the template engine's."""

import re
import unicodedata

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "-": "{-}", "[": "{[}", "*": "{*}",  # after the end of a row the last two would be an option of it
    "–": "--", "—": "---",
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "→": r"$\to$", "≤": r"$\leq$", "≥": r"$\geq$",
    "λ": r"$\lambda$", "Σ": r"$\Sigma$", "∇": r"$\nabla$", "‖": r"$\|$", "“": "``", "”": "''", "‘": "`", "’": "'",
    "…": r"\ldots{}", "\u00a0": "~",
}  # fmt: skip


class Escaped(str):
    """Text that has been escaped for the format at hand and is not escaped again."""

    __slots__ = ()


def tex(text: object) -> str:
    """Text for a LaTeX table. A character that LaTeX's default fonts lack is named by its code point, never dropped."""
    return "".join(_tex_character(c) for c in " ".join(str(text).split()))


def _tex_character(character: str) -> str:
    if character in _TEX:
        return _TEX[character]
    if character.isascii() and character.isprintable():
        return character
    # Accented Latin letters are in every font; of anything else one cannot be sure.
    if unicodedata.name(character, "").startswith("LATIN") and ord(character) < 0x180:
        return character
    return f"[U+{ord(character):04X}]"


def tex_comment(text: object) -> Escaped:
    """Text for a LaTeX comment: one line, printable ASCII, and no `^^`, which could end it."""
    return Escaped(re.sub(r"[^ -\]_-~]", "?", " ".join(str(text).split())))


def markdown_cell(text: object) -> str:
    """Text that cannot break out of a Markdown table, and of which no forge makes a link."""
    plain = re.sub(
        r"(?i)://|www\.|@", lambda found: "".join(f"{c}\u2060" for c in found[0]), " ".join(str(text).split())
    )
    marked = re.sub(r"([\\|`\[\]!*_~#])", r"\\\1", plain)
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_code(text: object) -> Escaped:
    """Text for a code span, where nothing can be escaped: what would end the span or the line is left out."""
    return Escaped(re.sub(r"[`|<>\s\\()\[\]]+", " ", str(text)).strip())


def csv_cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
