"""lm-eval's own tasks and local YAML ones: names, groups and patterns, beside its `hf` backend."""

import json
from pathlib import Path

import pandas as pd
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from data import open_tokenizer
from eval.__main__ import main
from eval.harness.tasks import expand, task_manager
from eval.running.evaluation import evaluate_model, sources
from eval.running.job import Job
from eval.tasks import load_tasks
from model.errors import UserError
from training.config.evaluation import EvalConfig, names_in_definitions

from .hf_backend import hf_backend, make_gpt
from .tiny_runs import write_sets

CHOICE = """
task: {name}
tag: sea_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl, dev: {folder}/dev.jsonl}}}}
test_split: test
fewshot_split: dev
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXT = """
task: sea_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/sea_b.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 6}}
metric_list: [{{metric: exact_match}}, {{metric: bleu}}]
filter_list:
  - {{name: first, filter: [{{function: regex, regex_pattern: "(\\\\w+)"}}, {{function: take_first}}]}}
  - {{name: whole, filter: [{{function: take_first}}]}}
num_fewshot: 0
"""
GROUP = """
group: sea
task: [sea_a, sea_b]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
MIXED = """
group: mixed
task: [sea_a, {group: choices, task: [{task: piqa, num_fewshot: 1}], aggregate_metric_list: [{metric: acc}]}]
aggregate_metric_list: [{metric: acc}]
"""
NAMES = ("sea", "sea_words")


@pytest.fixture(scope="module")
def yaml_tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, count in (("sea_a", 3), ("sea_b", 5), ("dev", 4)):
        items = [
            {"question": f"Which of {n} {name} is wet?", "choices": ["sand", "the sea"], "answer": n % 2}
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for name in ("sea_a", "sea_b"):
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, folder=folder))
    (folder / "sea_words.yaml").write_text(TEXT.format(folder=folder))
    (folder / "sea.yaml").write_text(GROUP)
    (folder / "mixed.yaml").write_text(MIXED)
    return folder


class Quiet:
    """A console that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def bar(self, title: str, **options) -> tqdm:
        return tqdm(disable=True)


@pytest.fixture(scope="module")
def scored(yaml_tasks, tmp_path_factory):
    """The model, what the command's job wrote with two solved examples, and what it said."""
    gpt, run = make_gpt(50304), tmp_path_factory.mktemp("run")
    console = Quiet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.running.evaluation.load", lambda job: (gpt, open_tokenizer("gpt2")))
        (run / "recipe.yaml").write_text("model: {}\n")
        config = EvalConfig(NAMES, include_path=str(yaml_tasks), num_fewshot=2)
        evaluate_model(Job(run, run, run, 1, config), console)
        first = len(console.lines)
        evaluate_model(Job(run, run, run, 1, config), console)
    folder = run / "eval" / "step_00000001"
    results = json.loads((folder / "results.json").read_text())
    return gpt, results, pd.read_parquet(folder / "per_item.parquet"), console.lines, first


def test_metrics_of_groups_and_text_equal_the_hf_backend(scored, yaml_tasks, tmp_path):
    gpt, ours, *_ = scored
    manager = TaskManager(include_path=str(yaml_tasks), include_defaults=False)
    theirs = simple_evaluate(hf_backend(gpt, tmp_path), tasks=[*NAMES], task_manager=manager, num_fewshot=2)
    assert ours["results"].keys() == theirs["results"].keys() == {"sea", "sea_a", "sea_b", "sea_words"}
    for name, scores in theirs["results"].items():
        numbers = {key: value for key, value in scores.items() if "bleu" not in key and type(value) is float}
        assert numbers and {key: ours["results"][name][key] for key in numbers} == pytest.approx(numbers)
    assert "acc,none" in ours["results"]["sea"] and ours["groups"].keys() == theirs["groups"].keys()
    assert {name: ours["n-shot"][name] for name in ("sea_a", "sea_words")} == {"sea_a": 2, "sea_words": 0}


def test_items_of_filters_are_told_apart(scored):
    _, ours, items, *_ = scored
    of_words = items[items["task"] == "sea_words"].groupby("metric")["value"].agg(["size", "mean"])
    assert of_words["size"].to_dict() == {"exact_match,first": 5, "exact_match,whole": 5}  # and no bleu
    for name, mean in of_words["mean"].items():
        assert ours["results"]["sea_words"][name] == pytest.approx(mean)


def test_a_table_has_a_groups_tasks_and_all_filters(scored):
    _, _, _, lines, first = scored
    assert "eval.num_fewshot does nothing for sea_words: they show no examples" in lines
    table = lines[first - 2].splitlines()
    named = [tuple(line.split()[:2]) for line in table]
    assert named[:5] == [
        ("sea_a", "acc"), ("sea_a", "acc_norm"), ("sea_b", "acc"), ("sea_b", "acc_norm"), ("sea", "acc"),
    ]  # fmt: skip
    assert ("sea_words", "exact_match,first") in named
    assert lines[first:] == lines[first - 2 : first]  # nothing was scored again


def test_solved_examples_stand_before_the_items_of_local_sets(tmp_path):
    items = [{"goal": f"dry {n} sails", "sol1": "hang", "sol2": "sink", "label": n % 2} for n in range(5)]
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "validation.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    solved = [
        f"Question: {item['goal']}\nAnswer: {item['sol2' if item['label'] else 'sol1']}\n\n" for item in items
    ]
    for asked in (None, 2):
        task = load_tasks(["piqa"], tmp_path, num_fewshot=asked)["piqa"]
        task.build_all_requests()
        for request in task.instances:
            own = f"Question: {items[request.doc_id]['goal']}\nAnswer:"
            assert request.args[0].endswith(own)
            before = request.args[0].removesuffix(own)
            shown = [example for example in solved if example in before]
            assert len(shown) == (asked or 0) and len(before) == sum(map(len, shown))
            assert solved[request.doc_id] not in shown


def test_a_groups_task_that_is_ours_reads_local_sets(yaml_tasks, tmp_path):
    sets, folder = write_sets(tmp_path / "sets"), str(yaml_tasks)
    tasks = load_tasks(["mixed"], sets, include_path=folder)
    assert list(tasks) == ["sea_a", "piqa", "mixed::choices", "mixed"]
    read = [{key: document[key] for key in ("goal", "sol1", "label")} for document in tasks["piqa"].eval_docs]
    written = (sets / "piqa" / "validation.jsonl").read_text().splitlines()
    assert read == [{key: json.loads(line)[key] for key in ("goal", "sol1", "label")} for line in written]
    assert tasks["piqa"].get_config("num_fewshot") == 1  # as the group says
    config = EvalConfig(("mixed", "piqa"), data_dir="sets", include_path=folder)
    assert sources(config.tasks, config) == "mixed from where their definitions say; mixed, piqa from sets"
    with pytest.raises(UserError, match=r"^task 'piqa' cannot score row 1 of .*: its 'label' is 2, but"):
        (sets / "piqa" / "validation.jsonl").write_text(written[0].replace('"label": 0', '"label": 2'))
        load_tasks(["mixed"], sets, include_path=folder)
    with pytest.raises(UserError, match=r"^task 'piqa' reads .*none/piqa/validation.jsonl .*does not exist"):
        (tmp_path / "none").mkdir()
        load_tasks(["mixed"], tmp_path / "none", include_path=folder)


def test_a_task_that_runs_the_models_code_is_refused_as_that(yaml_tasks):
    with pytest.raises(UserError, match=r"^task 'humaneval' runs code that the model writes, which is not"):
        load_tasks(["humaneval"], None, include_path=str(yaml_tasks))


def test_every_name_of_lm_eval_is_known_without_importing_it(yaml_tasks):
    names, theirs = names_in_definitions(str(yaml_tasks)), {*task_manager("mmlu", str(yaml_tasks)).all_tasks}
    assert theirs > {"mmlu", "sciq", "gsm8k", "sea", "sea_a", "sea_questions"}
    assert theirs <= names and len(names) < 1.05 * len(theirs)


def test_names_tags_and_patterns_stand_for_tasks(yaml_tasks):
    folder = str(yaml_tasks)
    assert expand(["sea_questions", "piqa"], folder) == ("sea_a", "sea_b", "piqa")
    assert expand(["sea_?", "sea_a"], folder) == ("sea_a", "sea_b")
    assert expand(["arc_easy", "mmlu_anatomy", "mmlu", "arc_*y"], folder)[:3] == (
        "arc_easy", "mmlu_anatomy", "mmlu",
    )  # fmt: skip
    every = expand(["mmlu_*"], folder)
    assert len(every) > 57 and "mmlu_stem" not in every  # a group of them


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tasks", "sciqq"], "there is no task 'sciqq' (did you mean 'sciq'?); known are wikitext, "),
        (["--tasks", "mmlx_*"], "no task matches 'mmlx_*': `lm-eval ls tasks` lists lm-eval's names"),
        (["--include_path", "{run}/none"], "eval.include_path is '{run}/none', which is no folder: name one"),
        (["--num_fewshot", "-1"], "eval.num_fewshot is -1, but it must be an integer of at least 0 or null"),
        (["--apply_chat_template"], "--apply_chat_template needs a model that was trained on chats, and a"),
    ],
)
def test_a_wrong_choice_of_tasks_is_one_sentence(tmp_path, capsys, options, sentence):
    (tmp_path / "recipe.yaml").write_text("model: {}\n")
    assert main([str(tmp_path), *(option.format(run=tmp_path) for option in options)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + sentence.format(run=tmp_path)) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("task: [broken", r"bad.yaml cannot be read as a task: while parsing .*: mend the file"),
        ("task: x\ninclude: gone", r"bad.yaml cannot be read as a task: .*No such file.*gone"),
        ("task: piqa", r"bad.yaml defines 'piqa', but a task here has that name: rename it"),
    ],
)
def test_a_definition_that_does_not_load_is_named(tmp_path, text, problem):
    (tmp_path / "bad.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=problem):
        task_manager("x", str(tmp_path))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            ("{{question}}", "{{question if answer == 0 else there.is_none}}"),  # the first item has 0
            "'sea_a': its definition makes no request of an item: UndefinedError: 'there'",
        ),
        (("sea_a.jsonl", "gone.jsonl"), "task 'sea_a' cannot be loaded: .*gone.jsonl"),
        (("output_type: multiple_choice", "output_type: unheard_of"), "task 'sea_a' cannot be loaded: "),
    ],
)
def test_a_task_that_cannot_be_scored_is_named_before_any_is(tmp_path, yaml_tasks, change, problem):
    from eval.checks.requests import check_requests

    definition = (yaml_tasks / "sea_a.yaml").read_text()
    assert change[0] in definition
    (tmp_path / "sea_a.yaml").write_text(definition.replace(*change))
    with pytest.raises(UserError, match=problem):
        tasks = load_tasks(["sea_a"], None, include_path=str(tmp_path))
        check_requests(tasks, open_tokenizer("gpt2"), 64, None)
