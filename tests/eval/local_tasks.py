"""Tasks of lm-eval's on files made here: its own definitions of three, a group like `mmlu_*`, and text."""

import json
from pathlib import Path

import lm_eval.tasks

DEFINITIONS = Path(lm_eval.tasks.__file__).parent
NOUNS = ("tide", "harbour", "pump", "ledger", "sail", "lantern", "mast", "anchor", "bell")
ADJECTIVES = ("slow", "grey", "patient", "wooden", "loud", "careful", "salt-stained", "old")


def words(number: int) -> tuple[str, str]:
    return ADJECTIVES[number % len(ADJECTIVES)], NOUNS[number % len(NOUNS)]


def sciq(number: int) -> dict:
    adjective, noun = words(number)
    distractors = {f"distractor{k}": f"a {words(number + k)[0]} {noun}" for k in (1, 2, 3)}
    question = f"Which {noun} was {adjective} on day {number}?"
    support = f" The {noun} by the quay was {adjective}."
    return {"support": support, "question": question, "correct_answer": f"the {adjective} one"} | distractors


def openbookqa(number: int) -> dict:
    adjective, noun = words(number)
    texts = [f"a {other} {noun}" for other in ADJECTIVES[number % 4 : number % 4 + 4]]
    choices = {"text": texts, "label": [*"ABCD"]}
    return {"question_stem": f"A {adjective} {noun} is best kept near", "choices": choices, "answerKey": "D"}


def copa(number: int) -> dict:
    adjective, noun = words(number)
    return {
        "premise": f"The {noun} was {adjective}.",
        "question": ("cause", "effect")[number % 2],
        "choice1": f"The water rose {number} feet.",
        "choice2": f"Nobody asked about the {noun}.",
        "label": number // 2 % 2,
    }


def mmlu(number: int) -> dict:
    adjective, noun = words(number)
    choices = [f"{words(number + k)[1]}s" for k in range(4)]
    return {"question": f"What is {adjective}er than a {noun}?", "choices": choices, "answer": number % 4}


def text(number: int) -> dict:
    adjective, noun = words(number)
    return {
        "question": f"A {adjective} {noun} and then",
        "page": f"A {adjective} {noun} ran. " * (number + 9),
    }


INCLUDED = {
    "sciq": ("sciq/sciq.yaml", sciq, ("train", "test")),
    "openbookqa": ("openbookqa/openbookqa.yaml", openbookqa, ("train", "test")),
    "copa": ("super_glue/copa/default.yaml", copa, ("train", "validation")),
    "mmlu_tides": ("mmlu/default/_default_template_yaml", mmlu, ("dev", "test")),
    "mmlu_sails": ("mmlu/default/_default_template_yaml", mmlu, ("dev", "test")),
    "mmlu_bells": ("mmlu/default/_default_template_yaml", mmlu, ("dev", "test")),
}
"""By task lm-eval's definition, what makes an item, and the splits that it reads."""
GROUP = """
group: mmlu_sea
task: [mmlu_tides, mmlu_sails, mmlu_bells]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
WRITTEN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/text.jsonl}}}}
test_split: test
output_type: {output_type}
doc_to_text: "{doc_to_text}"
doc_to_target: "{doc_to_target}"
metric_list: [{{metric: {metric}}}]
{rest}
"""
STORIES = "generation_kwargs: {until: ['.'], max_gen_toks: 9, do_sample: %s, temperature: %s}\nnum_fewshot: 2"
TASKS = ("sciq", "openbookqa", "copa", "mmlu_sea", "stories", "drawn_stories", "pages")


def write_tasks(folder: Path) -> Path:
    """Fill a folder with the definitions and their data."""

    def write(name: str, make, numbers: range) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(make(n)) + "\n" for n in numbers))

    for number, (task, (definition, make, splits)) in enumerate(INCLUDED.items()):
        files = {}
        for split, first, count in zip(splits, (90 * number, 90 * number + 40), (6, 6 + number), strict=True):
            write(f"{task}_{split}", make, range(first, first + count))
            files[split] = f"{folder}/{task}_{split}.jsonl"
        (folder / f"{task}.yaml").write_text(
            f"include: {DEFINITIONS / definition}\ntask: {task}\ndataset_path: json\ndataset_name: null\n"
            + ("validation_split: null\n" if "validation" not in splits else "")
            + f"dataset_kwargs: {json.dumps({'data_files': files})}\n"
        )
    (folder / "mmlu_sea.yaml").write_text(GROUP)
    write("text", text, range(6))
    for name, is_drawn, temperature in (("stories", "false", 0), ("drawn_stories", "true", 0.9)):
        (folder / f"{name}.yaml").write_text(
            WRITTEN.format(
                name=name, folder=folder, output_type="generate_until", doc_to_text="{{question}}",
                doc_to_target=" the {{question[2:9]}}.", metric="exact_match",
                rest=STORIES % (is_drawn, temperature),
            )
        )  # fmt: skip
    (folder / "pages.yaml").write_text(
        WRITTEN.format(
            name="pages", folder=folder, output_type="loglikelihood_rolling", doc_to_text="",
            doc_to_target="{{page}}", metric="word_perplexity", rest="",
        )
    )  # fmt: skip
    return folder
