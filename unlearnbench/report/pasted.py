"""Reads tables that were pasted into a text in Markdown or LaTeX, whatever their dress: what is printed counts."""

import html
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DIGEST = re.compile(r"\brecords\s+([0-9a-f]{12})\b")
BOLD = "bold "  # prefix of a number in bold
BOLD_MARKDOWN = re.compile(r"(?<![\\*])\*\*(?!\*)")
BOLD_LATEX = re.compile(r"\\(?:mathbf|textbf|bfseries|boldmath)\b")
LABEL = re.compile(r"\\label\s*\{([^{}]*)\}")
BODY = re.compile(r"\\begin\{(tabular[*xy]?)\}(.*?)\\end\{\1\}", re.DOTALL)
RULES = re.compile(
    r"\\(?:cmidrule|cline)\s*(?:\([^)]*\))?\s*\{[^{}]*\}|\\addlinespace(?:\[[^\]]*\])?|"
    r"\\(?P<end>(?:top|mid|bottom)rule\b(?:\[[^\]]*\])?|hline\b)"
)
STACK = re.compile(  # begins a text of several lines, or one of several rows
    r"\\makecell\s*(?:\[[a-z]*\])?|\\parbox\s*\[[a-z]\]\s*\{[^{}]*\}|"
    r"\\multirow(?:\[[a-z]\])?\s*\{-?\d+\}\s*\{[^{}]*\}"
)
SIGNS = {
    r"\pm": "±", r"\textpm": "±", r"\uparrow": "↑", r"\downarrow": "↓", r"\dagger": "†", r"\textdagger": "†",
    r"\textbackslash": "\\", r"\textasciitilde": "~", r"\textasciicircum": "^", r"\textless": "<", r"\textgreater": ">",
    r"\textbar": "|", "{": "", "}": "", "$": "", "~": " ", r"\,": " ", r"\ ": " ", r"\\": " ", r"\-": "",
}  # fmt: skip
SIGNS |= dict.fromkeys(  # affects the look of a text, not its content
    [rf"\{name}" for name in (
        "textbf", "textit", "emph", "underline", "mathbf", "mathrm", "bfseries", "itshape", "boldmath", "num", "text",
        "textsuperscript", "ensuremath", "small", "footnotesize", "scriptsize", "mdseries", "centering", "raggedright",
    )], "",
)  # fmt: skip


@dataclass(frozen=True)
class ParsedTable:
    """A table read from a file: texts with single spaces, without markup."""

    line: int  # where it begins, from 1
    caption: str
    label: str = ""  # in LaTeX without "tab:", in Markdown the heading above it
    header: tuple[str, ...] = ()  # the corner first
    rows: tuple[tuple[str, ...], ...] = ()  # the row's name first
    trouble: str = ""  # why it cannot be read

    @property
    def digest(self) -> str:
        """Digest of the records that the caption names; empty if it names none."""
        match = DIGEST.search(self.caption)
        return match[1] if match else ""

    @property
    def by_name(self) -> dict[tuple[str, int], tuple[str, ...]]:
        """{(name, number of earlier rows of this name): cells}."""
        return _by_name(self.rows)


def _by_name(rows: Iterable[Sequence[str]]) -> dict[tuple[str, int], tuple[str, ...]]:
    seen: Counter[str] = Counter()
    found = {}
    for name, *cells in rows:
        found[name, seen[name]] = tuple(cells)
        seen[name] += 1
    return found


def markdown_grids(text: str) -> list[ParsedTable]:
    """Return the tables of a Markdown text, each with the heading above it and the paragraph below it."""
    lines = ["" if re.fullmatch(r"\s*<!--.*-->\s*", line) else line.strip() for line in text.split("\n")]
    grids, end = [], 0
    for is_table, group in itertools.groupby(lines, lambda line: line.startswith("|")):
        start, end = end, end + len(found := list(group))
        if is_table and len(found) >= 2 and re.fullmatch(r"[\s|:-]*-[\s|:-]*", found[1]):
            above = next((line for line in reversed(lines[:start]) if line), "")
            heading = _markdown_plain(above.strip("#")) if above.startswith("#") else ""
            below = itertools.dropwhile(lambda line: not line, lines[end:])
            caption = " ".join(itertools.takewhile(bool, below))
            if caption.startswith(("#", "|", "![", "```")):
                caption = ""
            header, *rows = map(_markdown_row, [found[0], *found[2:]])
            grids.append(ParsedTable(start + 1, _markdown_plain(caption), heading, header, tuple(rows)))
    return grids


def _markdown_row(line: str) -> tuple[str, ...]:
    _, *cells = _split(line, "|", groups=False)
    if len(cells) > 1 and not cells[-1]:
        cells.pop()  # what follows the last line
    return tuple(_marked(_markdown_plain(cell), BOLD_MARKDOWN.search(cell)) for cell in cells)


def _marked(text: str, bold: object) -> str:
    """Return a cell's text, with BOLD before a number in bold."""
    return f"{BOLD}{text}" if bold and re.match(r"-?\d", text) else text


def _markdown_plain(text: str) -> str:
    """Return text without markup: escapes undone, asterisks and backticks gone."""
    text = re.sub(r"\\([^A-Za-z0-9\s])|[*`]", lambda match: match[1] or "", text)
    return " ".join(html.unescape(text).split())


def latex_grids(text: str) -> list[ParsedTable]:
    """Return the table environments of a LaTeX text."""
    text = without_comments(text)
    grids = []
    for match in re.finditer(r"\\begin\{((?:sideways|wrap)?table\*?)\}(.*?)\\end\{\1\}", text, re.DOTALL):
        start = re.search(r"\\caption\*?\s*(?:\[[^\]]*\]\s*)?(?=\{)", match[2])
        caption = _group(match[2], start.end())[0] if start else ""
        label = next((name[1].removeprefix("tab:") for name in LABEL.finditer(match[2])), "")
        place = (text.count("\n", 0, match.start()) + 1, _latex_plain(LABEL.sub("", caption)), label)
        parts = [_latex_body(body[2], has_width=body[1] != "tabular") for body in BODY.finditer(match[2])]
        named = [_by_name(rows) for _, rows in parts]
        if parts and all(one.keys() == named[0].keys() for one in named):
            header = parts[0][0] + tuple(itertools.chain(*[head[1:] for head, _ in parts[1:]]))
            rows = tuple((key[0], *itertools.chain(*[one[key] for one in named])) for key in named[0])
            grids.append(ParsedTable(*place, header, rows))
        else:
            trouble = f"its environment at line {place[0]} holds {len(parts)} tabulars of different rows"
            grids.append(ParsedTable(*place, trouble=trouble))
    return grids


def without_comments(text: str) -> str:
    """Return a LaTeX text without its comments."""
    return re.sub(r"(?<!\\)((?:\\\\)*)%[^\n]*", r"\1", text)


def _group(text: str, k: int) -> tuple[str, int]:
    """Return the content of the braces that open at k, and the position after them."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text[k:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0 and token[0] == "}":
            return text[k + 1 : k + token.start()], k + token.end()
    return text[k + 1 :], len(text)


def _latex_body(text: str, *, has_width: bool) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return header and rows of a tabular; a header of two levels becomes one, the upper one first."""
    for _ in range(2 if has_width else 1):  # the width, the columns
        text = re.sub(r"^\s*\[[^\]]*\]", "", text)
        text = text[_group(text, text.index("{"))[1] :] if "{" in text else text
    levels: list[list[str]] = []
    rows: list[list[str]] = []
    for line in _split(text, r"\\"):
        part = re.sub(r"^\*?(?:\s*\[[\d.]+\s*[a-z]{2}\])?", "", line)  # what \\ takes
        if any(rule["end"] for rule in RULES.finditer(part)) and rows and not levels:
            levels, rows = rows, []
        if bare := RULES.sub("", part).strip():
            rows.append(_latex_row(bare))
    if not levels:
        levels, rows = rows[:1], rows[1:]
    header = [" ".join(" ".join(column).split()) for column in itertools.zip_longest(*levels, fillvalue="")]
    for above, row in itertools.pairwise(rows):
        row[0] = row[0] or above[0]  # which spans both
    return tuple(header), tuple(map(tuple, rows))


def _split(text: str, separator: str, groups: bool = True) -> list[str]:
    """Return the parts of a text between a separator that is neither escaped nor, where braces make groups, in one."""
    parts, depth = [""], 0
    for token in re.findall(r"\\.|[^\\]|\\$", text, re.DOTALL):
        depth += groups * ((token == "{") - (token == "}"))
        if token == separator and depth <= 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def _latex_row(text: str) -> list[str]:
    cells = []
    for cell in _split(STACK.sub("", text), "&"):
        spanning = re.fullmatch(r"\s*\\multicolumn\s*\{([0-9]{1,3})\}\s*\{[^{}]*\}\s*\{(.*)\}\s*", cell, re.DOTALL)
        inner = spanning[2] if spanning else cell
        cells += [_marked(_latex_plain(inner), BOLD_LATEX.search(inner))] * (int(spanning[1]) if spanning else 1)
    return cells


def _latex_plain(text: str) -> str:
    """Return text as it is printed: escapes undone, signs as characters, braces and fonts gone."""
    text = re.sub(r"\^\s*(?:\{\s*\\dagger\s*\}|\\dagger\b)", r"\\dagger{}", text)
    tokens = re.findall(r"\\[A-Za-z]+\s*|\\.|[{}$~]|[^\\{}$~]+|\\", text, re.DOTALL)
    return " ".join(re.sub(r"\s*±\s*", " ± ", "".join(map(_sign, tokens))).split())


def _sign(token: str) -> str:
    if (name := token.strip() or token) in SIGNS:
        return SIGNS[name]
    return token[1:] if re.fullmatch(r"\\[^A-Za-z0-9\s]", token) else token
