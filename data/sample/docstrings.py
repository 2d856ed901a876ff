"""Prose from Python source: the docstrings of a file, without code, tables and markup.

The embedded sample is made of it (see `data.sample`). Nothing is imported or run: a file is only compiled.
"""

import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import numpy as np
import xxhash

SHINGLE_WORDS = 8
MIN_LITERAL_CHARACTERS = 120
MIN_CHUNK_WORDS = 4
MIN_PROSE_WORDS = 20
MIN_PLAIN_SHARE = 0.75
MIN_FUNCTION_WORD_SHARE = 0.15

_FENCE = re.compile(r"^\s*(```|~~~)")
_UNDERLINE = re.compile(r"^\s*([-=~^*+#\"'`.])\1{2,}\s*$")
_DOCTEST = re.compile(r"^\s*(>>>|\.\.\.(\s|$)|In \[\d+\]:|Out\[\d+\]:|\$ )")
_DIRECTIVE = re.compile(r"^\s*\.\. ([\w:+-]+)::(.*)$")
_PROSE_DIRECTIVES = frozenset(
    {"note", "warning", "versionadded", "versionchanged", "deprecated", "seealso", "tip", "important"}
)
_BULLET = re.compile(r"^\s*(?:[-*+\u2022]|\(?\d{1,2}[.)]|\[\d+\])\s+")
# `name: text`, `name (type, optional): text`, `name -- text`, `:param name: text`, `@param name: text`
_PARAMETER_TEXT = re.compile(
    r"^\s*(?:[:@]\w+(?: [^:]*)?:|\*{0,2}`{0,2}[\w.]+`{0,2}\*{0,2}\s*(?:\([^:]*\))?(?::| --))(?:\s+|$)"
)
# `name : type`, with the text on the lines below
_PARAMETER_TYPE = re.compile(r"^\s*[*\w.,` ]+ : ")
_ROLE = re.compile(r"(?<!\w):[\w:+-]+:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}")
_MARKDOWN_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_CITATION = re.compile(r"\s*\[\w+\]_")
_MARKUP = re.compile(r"``?|\*\*|\[`|`\]|\|(?=\w)|(?<=\w)\|")
_ENDS_SENTENCE = re.compile(r"(^|[.:;!?)])\s*$")
_SPACES = re.compile(r"\s+")
_PLAIN_WORD = re.compile(r"^[(\"'\u201c\u2018]*[A-Za-z]+(?:[-'\u2019/][A-Za-z]+)*[.,;:!?)\"'\u201d\u2019]*$")
_NOT_WORD = re.compile(r"[^a-z0-9 ]+")
_FUNCTION_WORDS = frozenset(
    "a an and are as at be been but by can does each for from has have if in into is it its may must no not "  # noqa: SIM905
    "of on one only or other should so such than that the their then there these they this to used using was "
    "we when where which will with you your".split()
)


def docstrings(path: Path) -> list[str]:
    """The docstrings of a Python file, and its other long string literals, in source order.

    Literals count because large libraries keep part of their documentation in calls such as `add_docstr(f,
    "...")`. A file that cannot be read or compiled gives none.
    """
    try:
        source = path.read_bytes()
    except OSError:
        return []
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # twice as fast as building and walking an `ast` tree
            code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return [inspect.cleandoc(text) for text in _literals(code) if len(text) >= MIN_LITERAL_CHARACTERS]


def prose(docstring: str) -> str:
    """The paragraphs of a clean docstring that read as English, one per line; empty if too little is left."""
    texts = (_plain(chunk) for paragraph in _paragraphs(docstring) for chunk in _chunks(paragraph))
    kept = [text for text in texts if _reads_as_english(text)]
    return "\n".join(kept) if sum(len(text.split()) for text in kept) >= MIN_PROSE_WORDS else ""


def shingles(text: str) -> np.ndarray:
    """Hashes of all runs of `SHINGLE_WORDS` words of `text`, case and punctuation aside: (n,) uint64, sorted,
    unique.

    A shorter text is one shingle. The hashes are the same in every process and on every machine.
    """
    words = _NOT_WORD.sub(" ", text.lower()).encode().split()
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    runs = (b" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last))
    return np.unique(
        np.fromiter((xxhash.xxh3_64_intdigest(run) for run in runs), dtype=np.uint64, count=last)
    )


def plain_share(text: str) -> float:
    """The share of the words of `text` that are plain English-looking words, from 0 to 1."""
    words = text.split()
    return sum(map(bool, map(_PLAIN_WORD.match, words))) / max(1, len(words))


def _literals(code: CodeType) -> Iterator[str]:
    """The string constants of compiled code and of the functions and classes inside it."""
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _literals(constant)


def _paragraphs(docstring: str) -> list[list[str]]:
    """Runs of lines between blank lines, without fenced code, literal blocks and directives' bodies."""
    paragraphs: list[list[str]] = [[]]
    fenced = False
    hidden_above: int | None = (
        None  # lines indented deeper than this belong to a literal block or a directive
    )
    for line in docstring.expandtabs().splitlines():
        if _FENCE.match(line):
            fenced = not fenced
            paragraphs.append([])
            continue
        if fenced:
            continue
        if not line.strip():
            paragraphs.append([])
            continue
        depth = len(line) - len(line.lstrip())
        if hidden_above is not None and depth > hidden_above:
            continue
        hidden_above = None
        directive = _DIRECTIVE.match(line)
        if directive:
            paragraphs.append([])
            if directive[1] not in _PROSE_DIRECTIVES:
                hidden_above = depth
            continue
        paragraphs[-1].append(line)
        if line.rstrip().endswith("::"):
            hidden_above = depth
    return paragraphs


def _chunks(paragraph: list[str]) -> list[str]:
    """The sentences, list items and parameter descriptions of a paragraph, each unwrapped to one line."""
    chunks: list[list[str]] = []
    indent = 0
    in_item = False
    for number, line in enumerate(paragraph):
        if _DOCTEST.match(line):
            break  # the rest is code and its output
        if _UNDERLINE.match(line) or (
            number + 1 < len(paragraph) and _UNDERLINE.match(paragraph[number + 1])
        ):
            in_item, indent = False, -1
            continue
        depth = len(line) - len(line.lstrip())
        item = _BULLET.match(line) or _PARAMETER_TEXT.match(line)
        if _PARAMETER_TYPE.match(line):
            chunks.append([""])
            in_item, indent = True, depth
        elif item:
            chunks.append([line[item.end() :]])
            in_item, indent = True, depth
        elif chunks and (
            (depth == indent and (not in_item or not _ENDS_SENTENCE.search(chunks[-1][-1])))
            or (depth > indent and in_item)
        ):
            chunks[-1].append(line.strip())
        else:
            chunks.append([line.strip()])
            in_item, indent = False, depth
    return [" ".join(filter(None, chunk)) for chunk in chunks]


def _plain(text: str) -> str:
    """`text` without reStructuredText and Markdown markup."""
    text = _ROLE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _MARKDOWN_LINK.sub(r"\1", text)
    text = _CITATION.sub("", text)
    text = _MARKUP.sub("", text).replace("::", ":").replace("`", "")
    return _SPACES.sub(" ", text).strip()


def _reads_as_english(text: str) -> bool:
    """Whether most words are plain and enough of them are function words."""
    words = text.split()
    if len(words) < MIN_CHUNK_WORDS or plain_share(text) < MIN_PLAIN_SHARE:
        return False
    function_words = sum(word.lower().strip(".,;:()") in _FUNCTION_WORDS for word in words)
    return function_words >= MIN_FUNCTION_WORD_SHARE * len(words)
