"""Train one GPT-2 variant and score it on the fixed validation set.

On two CPU ranks, with the embedded sample:
    deepspeed --num_accelerators 2 train.py --config recipes/sample.yaml \\
        --deepspeed_config ds_configs/zero1_bf16_cpu.json --run_dir runs/vanilla --model.variant vanilla
The reference experiment, on two GPUs:
    deepspeed --num_gpus 2 train.py --config recipes/gpt2_medium_fineweb.yaml \\
        --deepspeed_config ds_configs/zero1_bf16.json --model.variant rmsnorm
Run again, the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

# Each of these loads a name when it is first used: a refusal does not wait for torch.
import data
import eval
import model
import training


def main(argv: list[str]) -> int:
    """The main job. Returns its status: 0 finished, 1 failed, 2 refused, 3 diverged, 75 stopped and saved.

    An evaluation that fails changes none of them, and one that is stopped gives 75. A launcher ends all ranks
    at the first status that is not 0: of ranks that end together, rank 0 alone says how.
    """
    stop, start_up = training.StopRequest(), training.StartUp()
    trains: training.RunFolder | None = None  # whose failure a failure of this start is
    console: training.Console | None = None
    try:
        # What reading files can refuse is refused before torch, DeepSpeed and W&B are imported,
        recipe, ds, folder, overrides = training.read_command(argv)
        explain = "--explain" in argv
        is_finished = folder.is_finished(recipe.train.steps) and not explain
        if is_finished and folder.rank == 0:
            print(folder.finished_sentence(), file=sys.stderr)
        if is_finished and not eval.is_evaluation_missing(recipe.eval, folder):
            return 0
        if not explain:
            training.check_writable(folder.path)
            eval.check_evaluation(recipe.eval)
        if is_finished:
            return eval.evaluate_finished(recipe.eval, folder, stop)
        if not explain:
            stop.limit(recipe.train, folder, start_up.began)
            trains = folder
        start_up.mark("command")
        # and what needs them before anything is written.
        training.load_libraries(recipe.train.compile)
        training.check_with_deepspeed(ds)
        training.check_design(recipe)
        training.check_start(recipe, folder)
        if explain:
            if folder.rank == 0:
                print(training.explanation(recipe, ds, overrides))
            return 0
        start_up.mark("imports")
        console = training.Console(folder.log_file, silent=folder.rank > 0)
        stop.speak_on(console)
        folder.claim()
        begun = training.as_begun(recipe.data, folder, console.say)
        corpus, validation = data.open_data(begun, console.say)
        data.check_lanes(begun, corpus, training.world_size_from_environment())
        for note in (
            *training.environment_notes(),
            *ds.notes,
            *overrides.sentences(),
            *training.ineffective_keys(ds),
            *corpus.source.notes,
        ):
            console.say(note)
        # A run goes on with the data and the code that it began with, or not at all.
        folder.record_fingerprints("tokenizer files", tokenizer_fingerprint=corpus.tokenizer.fingerprint)
        settled = training.settle_data(recipe.data, begun, folder, corpus, validation)
        recipe = dataclasses.replace(recipe, data=settled)
        folder.record_fingerprints("code", design_fingerprint=model.design_fingerprint(recipe.model))
        start_up.mark("data")
        problem = training.design_problem(recipe, folder, console.say)
        start_up.mark("pre-flight")
        # All ranks train, or none does.
        ranks = training.join_ranks(str(folder.path), console.say_by_any_rank)
        problem = ranks.broadcast(problem or folder.sharing_problem(ranks.world_size))
        if problem := problem or training.differing_data(folder, ranks):
            return console.fail(problem)
        if before := folder.set_aside():
            console.say(f"{before} holds the run that was here; this one goes on without --restart")
        # Where the run stands: at its beginning, or at its newest checkpoint that is whole.
        divergence = training.Divergence(recipe, ds, folder, corpus, ranks, console)
        checkpoint = training.newest_checkpoint(folder.checkpoints, console.say)
        state = training.read_state(checkpoint, corpus.fingerprints, any_ranks=ds.load_universal)
    except Exception as error:
        return training.end_start(trains, error, console, start_up.began)
    watched, joined = training.run_watched(folder, ranks, console), stop.joined(ranks, folder)
    with watched, joined, training.bf16_arithmetic():
        folder.write_configs(vars(recipe), ds.raw, argv, state.step)
        folder.keep_designs(model.files_to_keep(recipe.model))
        folder.keep_tokenizer(corpus.tokenizer.file)
        folder.update_summary(**overrides.facts())
        # fmt: off
        status = train(
            recipe, ds, folder, console, corpus, validation, ranks, divergence, checkpoint, state, start_up,
            stop,
        )
        # fmt: on
    if folder.is_finished(recipe.train.steps):
        eval.evaluate_run(recipe.eval, folder, console, ranks, stop)
    return status if folder.rank == 0 else 0


def train(
    recipe: training.Recipe,
    ds: training.DeepSpeedConfig,
    folder: training.RunFolder,
    console: training.Console,
    corpus: data.Corpus,
    validation: data.ValidationSet,
    ranks: training.Ranks,
    divergence: training.Divergence,
    checkpoint: pathlib.Path | None,
    state: training.TrainState,
    start_up: training.StartUp,
    stop: training.StopRequest,
) -> int:
    """Build the engine, resume where a checkpoint is, run the loop. Returns the exit status."""
    import torch

    # Data first: its workers are forked while this process is small, and copy the pages it writes later.
    training.finish_loading()
    feed = divergence.start_feed(state, stop.asked)

    # The model. Unless its weights are given, init_seed alone decides them: two variants with the same seed
    # are a pair.
    gpt = training.initial_model(recipe, folder, ranks, resumes=checkpoint is not None)
    report = training.Reporter(recipe, ds, folder, console, ranks, gpt)  # before ZeRO-3 splits its parameters
    budget = recipe.train.activation_memory_budget
    training.wrap_blocks(gpt, recipe.train.compile, ds, console.say, budget)
    engine = training.build_engine(gpt, ds)
    torch.manual_seed(recipe.train.init_seed + ranks.rank)  # each rank draws its own dropout
    if checkpoint:
        training.load_checkpoint(engine, checkpoint, state)
    report.begin(state, checkpoint, corpus, validation, start_up)

    # The loop, which all ranks leave together: where a step ends, or by a stop before the next micro-batch.
    stop.start_is_over()
    training.freeze_objects()
    checkpoints = training.Checkpoints(engine, folder.path, recipe.train, stop.ask, report.checkpoint)
    if checkpoint is None and recipe.train.on_divergence == "rollback":  # there is always one to go back to
        training.save(checkpoints, state, report, stop)
    feed.fetch()
    saved, diverged, ends = state.step, None, ranks.any(stop.asked() or feed.error is not None)
    with stop.agreed():
        while not ends:
            # A validation or a checkpoint follows its step here, also where it was stopped between the two.
            if state.validation_due:
                with report.phase("validation"), stop.phase("validation"):
                    losses, texts = training.validate(
                        engine, state.step, validation, corpus.tokenizer, recipe, ds, ranks.device, stop.check
                    )
                    state.note_validation(float(losses.mean()), training.bits_per_byte(losses, validation))
                    report.validation(state, losses, validation, texts)
            last = state.step == recipe.train.steps
            if state.step != saved and checkpoints.are_due(state, last=last, stop=False):
                saved = training.save(checkpoints, state, report, stop)
            if last:
                break
            # Rate and designs follow from the step alone: a resumed run cannot drift from one in one piece.
            lr = training.learning_rate(state.step, ds.peak_lr, recipe.schedule)
            training.begin_step(engine, state.step, lr)
            with report.profiled_step(), report.diagnosed_step(engine, state.step + 1):
                result = training.train_step(
                    engine,
                    feed,
                    device=ranks.device,
                    eot=corpus.tokenizer.eot,
                    document_mask=recipe.data.document_mask,
                    fetch_next=state.step + 1 < recipe.train.steps,
                    stop=stop,
                    phase=report.phase,
                )
            state.advance(result)
            diverged = divergence.after_step(state, result)
            report.step(state, result, lr)
            if (
                diverged
                and diverged.rolls_back
                and (before := divergence.go_back(engine, diverged, state, checkpoints))
            ):
                state, feed = before, divergence.start_feed(before, stop.asked)
                report.rolled_back(state)
                feed.fetch()
                saved, diverged, ends = state.step, None, ranks.any(stop.asked() or feed.error is not None)
                continue
            # Neither a score nor a checkpoint of a model that diverged: the one before it stays the newest.
            ends = result.stop or diverged is not None
            last = state.step == recipe.train.steps
            state.validation_due = last or state.step % recipe.train.val_every == 0
    failure = training.save_last(checkpoints, feed, state, saved, diverged is not None, report, stop)
    diverged = diverged and divergence.explain(engine, feed, diverged, state)
    return report.end(state, diverged, failure)


if __name__ == "__main__":
    model.redact_output()
    sys.exit(main(sys.argv[1:]))
