"""Hugging Face's Trainer and GPT-2 with the DeepSpeed JSON that NormLab has."""

import tempfile
from typing import Any

import torch
from torch.utils.data import SequentialSampler

from model import to_hf

from .bench import RATE, WEIGHT_DECAY, Bench, Log, Turn, clocks


def huggingface(bench: Bench, compiled: bool) -> Turn:
    """The Trainer's own loop, a line of log for each step; from the end of a step to the last one's."""
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    ends: list[torch.Tensor] = []
    logged: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (1, state.max_steps):
                bench.synchronize()
                ends.append(clocks())

        def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if "loss" in (logs := more["logs"]):
                logged.append(logs)
                log.write(state.global_step, logs)

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(data)

    with tempfile.TemporaryDirectory() as folder:
        log, data = Log(bench, folder), _dealt(bench)
        arguments = TrainingArguments(
            output_dir=folder,
            deepspeed=dict(bench.deepspeed.raw),
            per_device_train_batch_size=bench.micro_batch,
            gradient_accumulation_steps=bench.accumulation,
            max_steps=bench.steps + 1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=bench.device.type == "cpu",
            torch_compile=compiled,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=bench.device.type == "cuda",
        )
        model = GPT2LMHeadModel.from_pretrained(to_hf(bench.gpt(), folder, eot=None))
        model.config.use_cache = False
        model.loss_type = "ForCausalLM"  # the default; to say so is a warning, which breaks the graph
        trainer = InOrder(model=model, args=arguments, train_dataset=data, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.accelerator.free_memory()
        engine: Any = trainer.model_wrapped
        engine.destroy()
    loss = bench.mean_of_ranks(logged[-1]["loss"])
    seconds, cpu_seconds = ((ends[-1] - ends[0]) / bench.steps).tolist()
    return Turn(seconds, cpu_seconds, loss, logged[-1]["grad_norm"])


def _dealt(bench: Bench) -> list[dict[str, torch.Tensor]]:
    """Sequences in an order in which the Trainer, which deals micro-batches to the ranks in turn, gives each
    rank its own. Those of other ranks are blank."""
    blank = torch.zeros(bench.config.block_size + 1, dtype=torch.int)
    rows = []
    for micro_batch in bench.tokens.flatten(0, 1).split(bench.micro_batch):
        for rank in range(bench.ranks.world_size):
            rows += list(micro_batch) if rank == bench.ranks.rank else [blank] * len(micro_batch)
    rows = [row.long() for row in rows]
    return [{"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]} for row in rows]
