"""What each task needs of an item: an item without it would end the job, or be scored as something else."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.errors import UserError

Item = Mapping[str, Any]


def check_items(task: str, rows: Iterable[tuple[int, Item]], where: str) -> None:
    """Raise UserError for the first item of a task's data that cannot be scored, with its file and row.

    Args:
        task: one that reads data.
        rows: the number of each row, and its item with the columns of the data set.
        where: the file or data set that they are from.
    """
    row = 0
    for row, item in rows:
        if problem := NEEDS[task](item):
            raise UserError(f"task '{task}' cannot score row {row} of {where}: {problem}: mend the row")
    if row == 0:
        raise UserError(f"task '{task}' cannot read {where}: it holds no item")


def read_items(task: str, file: Path) -> Iterator[tuple[int, Item]]:
    """The rows of a file of JSON lines, plain or gzipped, by their lines; empty lines are none.

    Not by `datasets`, which ends on some broken files without a word, or with the whole process. Raises
    UserError for a line that is no JSON object, and OSError where the file cannot be read.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for row, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    item = json.loads(line, object_pairs_hook=_once)
                except ValueError:  # UnicodeDecodeError is one
                    item = None
                if not isinstance(item, dict):
                    raise UserError(
                        f"task '{task}' cannot read row {row} of {file}: it is no JSON object in UTF-8 with "
                        "each key once"
                    )
                yield row, item
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"task '{task}' cannot read {file}: {error}") from error


def count_items(file: Path) -> int:
    """How many lines of a file of JSON lines hold something. Raises OSError where it cannot be read."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _once(pairs: list[tuple[str, Any]]) -> Item:
    if len(item := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return item


def _string(column: str) -> Callable[[Item], str | None]:
    return lambda item: None if isinstance(item.get(column), str) else _what_is(item, column, "a text")


def _document(column: str) -> Callable[[Item], str | None]:
    return lambda item: _no_text(item, column)


def _last_word(item: Item) -> str | None:
    """LAMBADA's passages: the part after the last space is predicted from what stands before."""
    if problem := _no_text(item, "text"):
        return problem
    context, _, word = item["text"].rpartition(" ")
    if not context.strip() or not word.strip():
        return "its 'text' has no last word behind a space and a context"
    return None


def _arc(item: Item) -> str | None:
    choices = item.get("choices")
    if not isinstance(choices, Mapping):
        return _what_is(item, "choices", "a text and a label of each choice")
    texts, labels = choices.get("text"), choices.get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        return "its 'choices' need a 'text' and a 'label' of each choice"
    if problem := _no_text(item, "question") or _empty_choice("choices", texts):
        return problem
    if item.get("answerKey") not in labels:
        return (
            f"its 'answerKey' is {item.get('answerKey')!r}, which is none of {', '.join(map(repr, labels))}"
        )
    return None


def _hellaswag(item: Item) -> str | None:
    for column in ("activity_label", "ctx_a", "ctx_b"):  # of which the last is often empty
        if not isinstance(item.get(column), str):
            return _what_is(item, column, "a text")
    if not isinstance(item.get("endings"), list):
        return _what_is(item, "endings", "a list of texts")
    # lm-eval takes out what is in brackets
    endings = [re.sub(r"\[.*?\]", "", one) if isinstance(one, str) else one for one in item["endings"]]
    label = item.get("label")
    if problem := _empty_choice("endings", endings):
        return problem
    if str(label) not in map(str, range(len(endings))):
        return f"its 'label' is {label!r}, which is the number of none of its {len(endings)} endings"
    return None


def _piqa(item: Item) -> str | None:
    if problem := _no_text(item, "goal") or _no_text(item, "sol1") or _no_text(item, "sol2"):
        return problem
    label = item.get("label")
    if type(label) is not int or label not in (0, 1):
        return f"its 'label' is {label!r}, but it must be 0 or 1"
    return None


def _winogrande(item: Item) -> str | None:
    for column in ("sentence", "option1", "option2"):
        if problem := _no_text(item, column):
            return problem
    _, blank, rest = item["sentence"].partition("_")
    if not blank or not rest.strip():
        return "its 'sentence' has no _ with a text behind it"
    answer = item.get("answer")
    return None if answer in ("1", "2") else f"its 'answer' is {answer!r}, but it must be '1' or '2'"


NEEDS: dict[str, Callable[[Item], str | None]] = {
    "wikitext": _document("page"),
    "lambada_openai": _last_word,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "winogrande": _winogrande,
    "sample_documents": _document("text"),
    "sample_lastword": _last_word,
    "wikitext2_windows": _string("page"),  # of one text: an empty document is a line of it
    "lambada_windows": _string("text"),
}
"""By task, what is wrong with one of its items, in words; None for an item that can be scored."""


def _no_text(item: Item, column: str) -> str | None:
    value = item.get(column)
    if not isinstance(value, str):
        return _what_is(item, column, "a text")
    return None if value.strip() else f"its {column!r} is empty"


def _empty_choice(column: str, texts: list[Any]) -> str | None:
    if len(texts) < 2:
        return f"its {column!r} are {len(texts)}, but a choice needs two"
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            return f"number {number} of its {column!r} is {'empty' if text == '' else repr(text)}, not a text"
    return None


def _what_is(item: Item, column: str, needed: str) -> str:
    if column not in item:
        return f"it has no {column!r}"
    value = item[column]
    return f"its {column!r} is {'null' if value is None else f'{value!r}'[:40]}, but it must be {needed}"
