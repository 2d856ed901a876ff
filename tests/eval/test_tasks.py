"""Tasks by name: from local files, from the embedded sample, and what is said where neither is there."""

import gzip
import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from tqdm import tqdm

import data.sample.build
from data import open_tokenizer
from eval.jobs import run_tasks
from eval.tasks import TASK_SETS, check_tasks, load_tasks
from model import GPT, GPTConfig
from model.errors import UserError
from training.config.evaluation import PROTOCOL_TASKS, PUBLIC_TASKS, EvalConfig

ARC = {
    "question": "Which of these is wet?",
    "choices": {"text": ["sand", "sea"], "label": ["A", "B"]},
    "answerKey": "B",
}
ITEMS = {
    "wikitext": {"page": " = Tides = \n \n The tide , which turns twice a day , is slow . "},
    "lambada_openai": {"text": "He looked at the sea and said that he loved the sea"},
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "hellaswag": {
        "activity_label": "Sailing", "ctx_a": "A boat leaves the harbour.", "ctx_b": "it", "label": "1",
        "endings": ["eats a fish. [title] Boats", "turns into the wind.", "sleeps.", "is a tree."],
    },
    "piqa": {"goal": "dry a sail", "sol1": "hang it up", "sol2": "sink it", "label": 0},
    "winogrande": {
        "sentence": "Ann asked Eve for the rope because _ had it.", "answer": "2",
        "option1": "Ann", "option2": "Eve",
    },
}  # fmt: skip
REQUESTS = {
    "wikitext": [(" = Tides =\n\nThe tide, which turns twice a day, is slow. ",)],
    "lambada_openai": [("He looked at the sea and said that he loved the", " sea")],
    "arc_easy": [("Question: Which of these is wet?\nAnswer:", f" {answer}") for answer in ("sand", "sea")],
    "hellaswag": [
        ("Sailing: A boat leaves the harbour. It", f" {ending}")
        for ending in ("eats a fish.. Boats", "turns into the wind.", "sleeps.", "is a tree.")
    ],
    "piqa": [("Question: dry a sail\nAnswer:", f" {solution}") for solution in ("hang it up", "sink it")],
    "winogrande": [(f"Ann asked Eve for the rope because {name}", " had it.") for name in ("Ann", "Eve")],
}


@pytest.fixture
def local_sets(tmp_path: Path) -> Path:
    folder = tmp_path / "[v1] *"  # which is a path and no pattern
    for name, item in ITEMS.items():
        file = folder / TASK_SETS[name].file
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(json.dumps(item) + "\n")
    return folder


@pytest.fixture
def sample(tmp_path: Path, monkeypatch) -> Path:
    texts = ["The tide runs out twice a day. " * n + "[1, 2]" for n in (3, 9, 27)]
    datasets.Dataset.from_list([{"text": text, "id": str(i)} for i, text in enumerate(texts)]).to_parquet(
        tmp_path / "validation.parquet"
    )
    passages = ["The boat waits for the tide and so we wait for the tide", "The rope is a rope"]
    lines = [json.dumps({"text": passage}) + "\n" for passage in passages]
    (tmp_path / "lastword.jsonl").write_text("".join(lines))
    monkeypatch.setattr(data.sample.build, "build_sample", lambda folder: tmp_path)
    return tmp_path


def requests(task) -> list[tuple[str, ...]]:
    task.build_all_requests(limit=1, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


def test_local_files_give_the_requests_of_the_public_tasks(local_sets):
    tasks = load_tasks([*PROTOCOL_TASKS, "arc_challenge"], local_sets)
    assert list(tasks) == [*PROTOCOL_TASKS, "arc_challenge"]
    for name, task in tasks.items():
        assert task.config.task == name
        expected = REQUESTS["arc_easy" if name == "arc_challenge" else name]
        assert requests(task) == expected


def test_every_public_task_has_its_definition_and_its_file():
    assert tuple(TASK_SETS) == PUBLIC_TASKS


def test_a_local_file_may_be_gzipped(local_sets):
    plain = local_sets / TASK_SETS["piqa"].file
    with gzip.open(plain.with_name(plain.name + ".gz"), "wt") as packed:
        packed.write(plain.read_text())
    plain.unlink()
    assert requests(load_tasks(["piqa"], local_sets)["piqa"]) == REQUESTS["piqa"]


def test_a_local_file_that_is_no_json_is_named(local_sets):
    (local_sets / TASK_SETS["piqa"].file).write_text("goal,sol1\n")
    with pytest.raises(UserError, match=r"task 'piqa' cannot read .*/\[v1\] \*/piqa/validation.jsonl"):
        load_tasks(["piqa"], local_sets)


def test_a_missing_local_file_is_named(local_sets):
    (local_sets / TASK_SETS["piqa"].file).unlink()
    with pytest.raises(UserError, match=r"task 'piqa' reads .*piqa/validation.jsonl.*not exist"):
        check_tasks(PROTOCOL_TASKS, local_sets)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        check_tasks(["piqa"], tmp_path / "nowhere")


def test_an_unknown_task_gets_the_nearest_name_and_the_list():
    with pytest.raises(UserError, match=r"no task 'hellaswg' \(did you mean 'hellaswag'\?\); known"):
        EvalConfig(tasks=("piqa", "hellaswg"))


def test_a_limit_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"eval.limit is 0, but it must be an integer of at least 1"):
        EvalConfig(limit=0)


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub (LocalEntryNotFoundError)\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match=r"^task 'piqa' cannot be had from the .*--eval_data DIR"):
        load_tasks(["piqa"], None)


def test_the_hub_is_asked_for_the_public_data_set(monkeypatch):
    asked = []

    def load_dataset(path, name=None, **kwargs):
        asked.append((path, name))
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for task in TASK_SETS:
        with pytest.raises(ConnectionError):
            load_tasks([task], None)
    assert asked == [
        ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"), ("EleutherAI/lambada_openai", "default"),
        ("allenai/ai2_arc", "ARC-Easy"), ("Rowan/hellaswag", None), ("baber/piqa", None),
        ("allenai/winogrande", "winogrande_xl"), ("allenai/ai2_arc", "ARC-Challenge"),
    ]  # fmt: skip


def no_bar(title, **options):
    return tqdm(disable=True)


def untrained(vocab_size: int) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=1024, vocab_size=vocab_size))


def test_a_byte_model_is_scored_on_all_public_tasks(local_sets):
    results = run_tasks(
        untrained(257), open_tokenizer("bytes"), load_tasks(TASK_SETS, local_sets), bar=no_bar
    )
    (page,) = REQUESTS["wikitext"][0]
    # An untrained model finds all symbols about as likely; lm-eval counts bytes before it mends the spaces.
    expected = math.log2(257) * len(page.encode()) / len(ITEMS["wikitext"]["page"].encode())
    assert results["results"]["wikitext"]["bits_per_byte,none"] == pytest.approx(expected, rel=0.05)
    accuracies = {name: scores.get("acc,none") for name, scores in results["results"].items()}
    assert all(accuracies[name] in (0, 1) for name in TASK_SETS if name != "wikitext")


@pytest.mark.parametrize(("name", "vocab_size"), [("gpt2", 50304), ("bytes", 257)])
def test_sample_tasks_score_the_held_out_documents(sample, name, vocab_size):
    gpt, tokenizer = untrained(vocab_size), open_tokenizer(name)
    tasks = load_tasks(["sample_documents", "sample_lastword"], None)
    results = run_tasks(gpt, tokenizer, tasks, bar=no_bar)["results"]

    texts = datasets.Dataset.from_parquet(str(sample / "validation.parquet"))["text"]
    nats = []
    for text in texts:
        tokens = tokenizer.encode(text).tolist()
        assert len(tokens) <= 1024
        logits, _ = gpt(torch.tensor([[tokenizer.eot, *tokens[:-1]]]))
        nats.append(-logits[0].log_softmax(-1)[range(len(tokens)), tokens].sum().item())
    bits_per_byte = sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)
    assert results["sample_documents"]["bits_per_byte,none"] == pytest.approx(bits_per_byte, rel=1e-5)

    passages = [json.loads(line)["text"] for line in (sample / "lastword.jsonl").read_text().splitlines()]
    ((context, target),) = requests(tasks["sample_lastword"])
    assert (context, target) == (passages[0].removesuffix(" tide"), " tide")
    assert results["sample_lastword"]["acc,none"] == 0
    # An untrained model finds all tokens about as likely; GPT-2 has one for each of the last words.
    expected = math.log(vocab_size) * len(tokenizer.encode(" tide"))
    assert math.log(results["sample_lastword"]["perplexity,none"]) == pytest.approx(expected, rel=0.05)
