"""Items that cannot be scored: said with file and row, before any task is scored."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data import open_tokenizer
from eval.checks.items import NEEDS, check_items, read_items
from eval.checks.requests import check_requests
from eval.scoring.windows import TextWindows
from eval.tasks import TASK_SETS, load_tasks
from model.errors import UserError
from training.run.reader import read_results

ARC = {
    "question": "Which is wet?",
    "choices": {"text": ["sand", "sea"], "label": ["A", "B"]},
    "answerKey": "B",
}
GOOD: dict[str, dict[str, Any]] = {
    "wikitext": {"page": " = Tides = \n The tide is slow . "},
    "lambada_openai": {"text": "He looked at the sea"},
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "hellaswag": {
        "activity_label": "Sailing", "ctx_a": "A boat leaves.", "ctx_b": "", "label": "1",
        "endings": ["eats a fish.", "turns into the wind."],
    },
    "piqa": {"goal": "dry a sail", "sol1": "hang it up", "sol2": "sink it", "label": 0},
    "winogrande": {
        "sentence": "Ann asked Eve because _ knew.", "answer": "2", "option1": "Ann", "option2": "Eve",
    },
    "sample_documents": {"text": "The tide runs out."},
    "sample_lastword": {"text": "The rope is a rope"},
    "wikitext2_windows": {"page": ""},
    "lambada_windows": {"text": "a"},
}  # fmt: skip
WITHOUT_TEXT = ["", " \n", None, 3]
BAD: dict[str, dict[str, list[Any]]] = {
    "wikitext": {"page": WITHOUT_TEXT},
    "lambada_openai": {"text": [*WITHOUT_TEXT, "sea", " sea", "the sea ", "the sea \n"]},
    "arc_easy": {
        "question": WITHOUT_TEXT,
        "choices": [
            None, [], {}, {"text": ["a", "b"], "label": ["A"]}, {"text": ["a", ""], "label": ["A", "B"]},
            {"text": [None, "b"], "label": ["A", "B"]}, {"text": ["b"], "label": ["B"]},
            {"text": None, "label": None},
        ],
        "answerKey": ["D", "", None, 1],
    },
    "hellaswag": {
        "activity_label": [None], "ctx_a": [None, 1], "ctx_b": [None],
        "label": ["", "2", "-1", None, "x", 1.5],
        "endings": [None, [], ["a"], ["a", None], ["a", ""], ["a", "[step]"]],
    },
    "piqa": {
        "goal": WITHOUT_TEXT, "sol1": WITHOUT_TEXT, "sol2": WITHOUT_TEXT,
        "label": [-1, 2, None, "1", 0.5, True],
    },
    "winogrande": {
        "sentence": [*WITHOUT_TEXT, "no blank here", "it ends with _", "it ends with _ "],
        "option1": WITHOUT_TEXT, "option2": WITHOUT_TEXT, "answer": ["", "3", 1, None],
    },
    "sample_documents": {"text": WITHOUT_TEXT},
    "sample_lastword": {"text": ["rope", "a rope "]},
    "wikitext2_windows": {"page": [None, 3]},
    "lambada_windows": {"text": [None]},
}  # fmt: skip
BAD["arc_challenge"] = BAD["arc_easy"]
LOCAL_SETS = Path(__file__).parents[3] / "shared" / "data" / "eval"


def write_items(folder: Path, task: str, *items: dict[str, Any]) -> Path:
    file = folder / TASK_SETS[task].file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return file


@pytest.mark.parametrize("task", NEEDS)
def test_every_column_that_a_task_reads_is_checked(task):
    check_items(task, enumerate([GOOD[task]] * 2, 1), "here")
    assert BAD[task].keys() <= GOOD[task].keys()
    for column, values in BAD[task].items():
        for value in values:
            items = [GOOD[task], GOOD[task] | {column: value}, GOOD[task]]
            with pytest.raises(
                UserError, match=rf"^task '{task}' cannot score row 2 of here: .*: mend the row$"
            ):
                check_items(task, enumerate(items, 1), "here")
        missing = copy.copy(GOOD[task])
        del missing[column]
        with pytest.raises(UserError, match=f"row 1 of here: it.* '{column}'"):
            check_items(task, [(1, missing)], "here")


@pytest.mark.parametrize(
    ("task", "bad", "sentence"),
    [
        ("wikitext", {"page": ""}, "its 'page' is empty"),
        ("wikitext", {"page": None}, "its 'page' is null, but it must be a text"),
        ("piqa", {"sol1": ""}, "its 'sol1' is empty"),
        ("winogrande", {"sentence": "no blank here"}, "its 'sentence' has no _ with a text behind it"),
        ("arc_easy", {"answerKey": "D"}, "its 'answerKey' is 'D', which is none of 'A', 'B'"),
        ("hellaswag", {"ctx_a": None}, "its 'ctx_a' is null, but it must be a text"),
    ],
)
def test_a_bad_item_of_a_local_file_is_named_before_anything_is_scored(tmp_path, task, bad, sentence):
    write_items(tmp_path, "lambada_openai", GOOD["lambada_openai"])
    file = write_items(tmp_path, task, GOOD[task], GOOD[task] | bad)
    with pytest.raises(UserError) as refused:
        load_tasks(["lambada_openai", task], tmp_path)
    assert str(refused.value) == f"task '{task}' cannot score row 2 of {file}: {sentence}: mend the row"


def test_a_row_of_windows_without_text_is_named(tmp_path):
    file = write_items(tmp_path, "wikitext", GOOD["wikitext"], {"page": None})
    with pytest.raises(
        UserError, match=f"^task 'wikitext2_windows' cannot score row 2 of {file}: its 'page'"
    ):
        load_tasks(["wikitext2_windows"], tmp_path)


def test_too_little_text_for_windows_is_said_before_anything_is_scored(tmp_path):
    write_items(tmp_path, "piqa", GOOD["piqa"])
    tasks = load_tasks(["piqa"], tmp_path) | {"lambada_windows": TextWindows("lambada_windows", "a", "here")}
    with pytest.raises(UserError, match=r"^task 'lambada_windows': here holds no text to score"):
        check_requests(tasks, open_tokenizer("bytes"), 64, limit=None)
    check_requests({"piqa": tasks["piqa"]}, open_tokenizer("bytes"), 64, limit=1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", ": it holds no item"),
        (b"\n \n", ": it holds no item"),
        (b'\n{"page": "a b"}\n[]\n', ", row 3"),
        (b"null\n", ", row 1"),
        (b'{"page": "a b", "page": "c"}\n', ", row 1"),
        (b'{"page": "a b"}\n{"page": \n', ", row 2"),
        (b'{"page": "caf\xe9"}\n', ", row 1"),
        (b"\x1f\x8b cut off", ", row 1"),
    ],
)
@pytest.mark.parametrize("task", ["wikitext", "wikitext2_windows"])
def test_a_file_that_is_no_json_lines_is_named_with_the_line(tmp_path, task, content, sentence):
    file = write_items(tmp_path, "wikitext")
    file.write_bytes(content)
    _, found, row = sentence.partition(", row ")
    where = (
        f"row {row} of {file}: it is no JSON object in UTF-8 with each key once"
        if found
        else f"{file}{sentence}"
    )
    with pytest.raises(UserError) as refused:
        load_tasks([task], tmp_path)
    assert str(refused.value) == f"task '{task}' cannot read {where}"


def test_a_gzipped_file_that_is_cut_off_is_named(tmp_path):
    file = write_items(tmp_path, "piqa")
    content = gzip.compress(json.dumps(GOOD["piqa"]).encode() * 100)
    file.unlink()
    for damaged in (content[:-20], b"no gzip"):
        file.with_name(file.name + ".gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"^task 'piqa' cannot read .*validation\.jsonl\.gz: "):
            load_tasks(["piqa"], tmp_path)


def test_results_of_finished_tasks_stay_where_a_later_one_fails(tmp_path, monkeypatch):
    from eval import jobs
    from eval.running.evaluation import score
    from eval.running.job import Job
    from model import GPT, GPTConfig
    from training.config.evaluation import EvalConfig
    from training.run.console import Console

    for task in ("piqa", "wikitext"):
        write_items(tmp_path, task, GOOD[task])
    evaluate = jobs._evaluate

    def fail_later(lm, name, task, limit):
        if name == "wikitext":
            raise UserError("it fails")
        return evaluate(lm, name, task, limit)

    monkeypatch.setattr(jobs, "_evaluate", fail_later)
    run = tmp_path / "run"
    job = Job(run, run, run, 1, EvalConfig(("piqa", "wikitext"), str(tmp_path)))
    gpt = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=64, vocab_size=257))
    console = Console(tmp_path / "log.txt", silent=True)
    with pytest.raises(UserError, match=r"^task 'wikitext': it fails"):
        score(job, ("piqa", "wikitext"), (gpt, open_tokenizer("bytes")), console)
    assert read_results(run, 1)["results"].keys() == {"piqa"}


@pytest.mark.skipif(not LOCAL_SETS.is_dir(), reason=f"no local evaluation sets in {LOCAL_SETS}")
@pytest.mark.parametrize(
    "task", ["wikitext", "lambada_openai", "arc_easy", "hellaswag", "piqa", "winogrande"]
)
def test_the_public_sets_have_no_bad_item(task):
    file = next((LOCAL_SETS / TASK_SETS[task].file).parent.glob(Path(TASK_SETS[task].file).name + "*"))
    check_items(task, read_items(task, file), str(file))
