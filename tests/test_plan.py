"""The plan of a time budget is a function of numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jkoflow.ops import Fixed
from jkoflow.training.plan import (
    FEWEST_ROWS,
    LEAST_PUSHED,
    LEAST_TEST_ROWS,
    Budget,
    Costs,
    EvaluationRows,
    Outlook,
    evaluation_work,
    expected_grid,
    iterations_within,
    plan_evaluation,
    plan_fit,
    plan_push,
    seconds_for_block,
    seconds_for_fit,
)
from jkoflow.training.run_plan import (
    DIVIDED_SHARE,
    FIRST_WIDTH,
    MORE_STEPS,
    MOST_WIDTH,
    RunPlan,
    blocks_within,
    finetune_share,
    plan_run,
    width_within,
)

positive = st.floats(1e-3, 1e3)
ROWS = EvaluationRows(val=1000, test=1000, inversion=1000, exact=0, samples=0)


def test_budget_is_split_equally_over_the_blocks_left():
    assert seconds_for_block(100, 20, 10, 7) == pytest.approx(10)
    assert seconds_for_block(100, 95, 10, 1) == 0


@given(positive, st.integers(1, 20), st.floats(0, 1))
def test_shares_add_up_to_the_budget(budget, blocks, reserve):
    elapsed = 0.0
    for block in range(blocks):
        elapsed += seconds_for_block(budget, elapsed, reserve * budget, blocks - block)
    assert elapsed == pytest.approx(budget * (1 - reserve), abs=1e-9 * budget)


def test_more_time_is_more_blocks_and_longer_ones():
    for n in range(1000, 200_000, 500):
        assert 2 <= blocks_within(n, 8) <= blocks_within(n + 500, 8) <= 8
        if blocks_within(4 * n, 100) > 4:
            assert blocks_within(4 * n, 100) == pytest.approx(2 * blocks_within(n, 100), abs=1)
    assert blocks_within(0.0, 6) == 2
    assert blocks_within(1e9, 1) == 1


def test_iterations_within_a_time():
    assert iterations_within(1.0, 0.01) == 100
    assert iterations_within(0.0, 0.01) == 1
    assert iterations_within(-5.0, 0.01, least=3) == 3
    assert math.isfinite(iterations_within(1.0, 0.0))


def test_a_budget_tells_what_is_left():
    now = [3.0]
    budget = Budget(lambda: now[0], 10.0)
    assert budget.left() == 7.0
    now[0] = 12.0
    assert budget.left() == -2.0
    assert budget.left_with_slack() == pytest.approx(-2.0 + 0.5 + 1.0)


def test_an_evaluation_is_expected_to_need_two_refinements_and_four_steps_at_least():
    assert [expected_grid(Fixed(n)).cost for n in (1, 4, 6)] == [16, 16, 24]


def test_evaluation_grows_with_everything_it_does():
    base = evaluation_work(Fixed(16), ROWS)
    assert base == pytest.approx(16 * (2 + 1.5 + 2) * 1000)
    more = evaluation_work(Fixed(16), ROWS._replace(exact=500, samples=1000))
    assert more == pytest.approx(base + 16 * (5 * 500 + 1000))
    assert evaluation_work(Fixed(32), ROWS) == pytest.approx(2 * base)


def test_the_speed_of_the_first_block_decides_the_number_of_blocks_unless_it_is_given():
    quick, slow = (plan_run(60.0, 1, seconds, 6, None, free=False, scale=3.0) for seconds in (0.001, 0.05))
    assert quick == RunPlan(blocks=6, finetune=0.8, divide=1)
    assert slow == RunPlan(blocks=2, finetune=0.0, divide=1)
    assert plan_run(60.0, 1, 0.05, 6, 5, free=True, scale=3.0).blocks == 5
    later = plan_run(60.0, 5, 0.001, 6, None, free=True, scale=3.0)
    assert later.finetune == 0.0, "what later rounds take is not there for fine-tuning"
    assert later.blocks > 1


def test_a_plan_that_may_choose_has_one_block_and_divides_it_if_that_pays():
    def plan(seconds, scale):
        return plan_run(seconds, 1, 0.01, 6, None, free=True, scale=scale)

    assert plan(10.0, 3.0) == RunPlan(blocks=1, finetune=DIVIDED_SHARE, divide=2, width=128)
    assert plan(10.0, 20.0) == RunPlan(blocks=1, finetune=0.0, divide=1, width=128)
    assert plan(1.0, 3.0) == plan(1.0, 20.0) == RunPlan(blocks=1, finetune=0.0, divide=1, width=128)
    assert plan(320.0, 3.0).rate_share == pytest.approx(0.5)
    assert plan(50.0, 20.0) == RunPlan(blocks=1, finetune=0.0, divide=1, width=192, more_steps=MORE_STEPS)
    assert plan(10.0, 1.2) == RunPlan(blocks=2, finetune=0.0, divide=1, width=128, together=True)
    assert plan(50.0, 1.2) == RunPlan(blocks=4, finetune=0.0, divide=1, width=192, together=True)


def test_layers_are_as_wide_as_there_are_iterations_for_within_what_the_kernels_take():
    widths = [width_within(n) for n in (0, 100, 1000, 2000, 10_000, 10**9)]
    assert widths == sorted(widths)
    assert (widths[0], widths[2], widths[-1]) == (FIRST_WIDTH, FIRST_WIDTH, MOST_WIDTH)
    assert all(width % 32 == 0 for width in widths)


def test_validations_take_a_share_of_the_time():
    costs = Costs(iteration=0.01, validation=1.0, row_step=1e-6, row_carry=5e-7)
    plan = plan_fit(costs, validate_every=50)
    assert plan.validate_every == math.ceil(19 * 1.0 / 0.01)
    assert plan.iteration_seconds == pytest.approx(0.01 / 0.95, rel=1e-3)
    assert plan_fit(costs._replace(validation=1e-4), 50).validate_every == 50


def test_rows_go_on_as_far_as_a_tenth_of_the_time_lets_them():
    kept = {}
    for seconds in (1e-3, 10.0, 1e6):
        plan = plan_push(seconds, Fixed(2), 2e-5, 1e-5, train_rows=100_000, val_rows=500, batch_size=250, last=False)
        kept[seconds] = plan.kept_rows
        assert plan.seconds == pytest.approx(4 * (1e-5 * plan.kept_rows + 2e-5 * 500))
    assert kept == {1e-3: LEAST_PUSHED, 10.0: pytest.approx(25_000, abs=1), 1e6: 100_000}
    assert plan_push(1.0, Fixed(2), 1e-5, 1e-5, 300, 500, 250, last=False).kept_rows == 300
    assert plan_push(1.0, Fixed(2), 1.0, 1.0, 50_000, 500, 20_000, last=False).kept_rows == 20_000, "a batch at least"
    assert plan_push(1e6, Fixed(2), 2e-5, 1e-5, 100_000, 500, 250, last=True).kept_rows == LEAST_PUSHED


def outlook(**changes):
    usual = {
        "round_blocks": 3, "blocks_left": 3, "later_rounds": 0, "children": 1, "grid": Fixed(1), "finetune": 0.0,
        "divide": 1, "rows": ROWS,
    }  # fmt: skip
    return Outlook(**{**usual, **changes})


def test_blocks_of_all_rounds_share_what_the_evaluation_leaves():
    row_step = 1e-5
    reserve = row_step * 3 * evaluation_work(Fixed(16), ROWS) + 0.02 * 100
    assert seconds_for_fit(100.0, 10.0, outlook(), row_step) == pytest.approx((90 - reserve) / 3)
    assert seconds_for_fit(100.0, 10.0, outlook(later_rounds=1), row_step) == pytest.approx((90 - reserve) / 6)
    assert seconds_for_fit(100.0, 10.0, outlook(blocks_left=1), row_step) == pytest.approx(90 - reserve)
    tuned = seconds_for_fit(100.0, 10.0, outlook(finetune=0.5), row_step)
    assert tuned == pytest.approx((90 - reserve - 0.5 * (100 - reserve)) / 3)
    alone, divided = (
        seconds_for_fit(100.0, 0.0, outlook(round_blocks=1, blocks_left=1, finetune=0.5, divide=divide), row_step)
        for divide in (1, 2)
    )
    assert divided == pytest.approx(alone / 2), "a block that is not divided is not fine-tuned"


def test_children_share_the_steps_of_their_parents():
    """Twice the blocks of half the steps are evaluated at the cost of the parents."""
    parents = seconds_for_fit(100.0, 0.0, outlook(grid=Fixed(16)), 1e-5)
    assert seconds_for_fit(100.0, 0.0, outlook(grid=Fixed(16), children=2), 1e-5) == pytest.approx(parents)


def test_many_test_rows_get_a_fifth_of_the_budget_at_most():
    rows = ROWS._replace(test=10_000_000)
    assert seconds_for_fit(100.0, 0.0, outlook(rows=rows), 1e-6) == pytest.approx((100 - 20 - 2) / 3)


def test_an_evaluation_that_would_take_all_gets_two_fifths():
    assert seconds_for_fit(10.0, 0.0, outlook(), 1.0) == pytest.approx((10 - 4 - 0.2) / 3)


MANY = EvaluationRows(val=5000, test=200_000, inversion=10_000, exact=500, samples=1000)


def test_an_evaluation_with_time_looks_at_everything():
    assert plan_evaluation(MANY, Fixed(8), 1e9, 0.0, 1e-6) == MANY


def test_short_time_costs_test_rows_first():
    seconds = 1.5
    plan = plan_evaluation(MANY, Fixed(8), seconds, 0.0, 1e-6)
    assert LEAST_TEST_ROWS < plan.test < MANY.test
    assert plan._replace(test=MANY.test) == MANY
    needed = 1e-6 * evaluation_work(Fixed(8), plan.calibrated())
    assert 0.999 * seconds < needed <= seconds


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 0.05])
def test_no_time_costs_rows_of_every_part_but_never_all(seconds):
    plan = plan_evaluation(MANY, Fixed(64), seconds, 0.5, 1e-6)
    assert min(plan[1:]) == FEWEST_ROWS
    assert all(a <= b for a, b in zip(plan[1:], MANY.within(LEAST_TEST_ROWS)[1:], strict=True))


def test_few_rows_are_all_looked_at():
    few = EvaluationRows(val=50, test=40, inversion=40, exact=40, samples=40)
    assert plan_evaluation(few, Fixed(64), -5.0, 0.0, 1.0) == few


@given(st.floats(-10, 100), st.floats(0, 5), st.integers(1, 256), st.floats(1e-9, 1e-3))
def test_more_time_is_never_fewer_rows(seconds, slack, steps, row_step):
    less, more = (plan_evaluation(MANY, Fixed(steps), s, slack, row_step) for s in (seconds, seconds + 1))
    assert all(a <= b for a, b in zip(less, more, strict=True))


def test_only_long_budgets_are_fine_tuned():
    assert [finetune_share(n) for n in (1000, 14_999, 15_000, 1e6)] == [0.0, 0.0, 0.8, 0.8]
