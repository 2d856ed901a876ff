"""What a run carries over a stop: how a step and a validation change it."""

from tests.training.steps import step_result
from training.state import TrainState


def test_a_step_counts_its_tokens_and_moves_its_lanes() -> None:
    state = TrainState(step=4, tokens=400, cursors={0: (0, 0, 0, 0), 1: (0, 0, 5, 2)})
    state.advance(step_result(tokens=100, cursors={0: (0, 0, 7, 1)}, bad_documents={"empty": 3}))
    assert (state.step, state.tokens) == (5, 500)
    assert state.cursors == {0: (0, 0, 7, 1), 1: (0, 0, 5, 2)}
    assert state.bad_documents == {"empty": 3}


def test_skipped_steps_count_and_an_applied_one_ends_their_row() -> None:
    state = TrainState()
    rows = []
    for applied in (True, False, False, True, False):
        state.advance(step_result(applied=applied))
        rows.append(state.skipped_in_a_row)
    assert rows == [0, 1, 2, 0, 1]
    assert (state.step, state.skipped_steps) == (5, 3)


def test_the_best_validation_is_the_lowest_and_the_first_of_equals() -> None:
    state = TrainState()
    for step, loss in ((10, 3.0), (20, 2.5), (30, 2.5), (40, 2.7)):
        state.step = step
        state.note_validation(loss, loss / 3)
    assert (state.val_loss, state.val_bits_per_byte) == (2.7, 2.7 / 3)
    assert (state.best_val_loss, state.best_step) == (2.5, 20)
