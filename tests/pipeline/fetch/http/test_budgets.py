import asyncio

from pipeline.fetch.http.budgets import ByteBudget


def test_holders_wait_over_the_limit_and_one_at_a_time_goes_on() -> None:
    most = 0

    async def hold(budget: ByteBudget, holder: int) -> None:
        nonlocal most
        for _ in range(5):
            await budget.grow(10, holder)
            most = max(most, budget._held)
            await asyncio.sleep(0)
        if holder % 4 == 0:
            budget.abandon(50, holder)
            return
        budget.finish(50, holder)
        await asyncio.sleep(0.001 * (holder % 3))
        budget.release(50)

    async def run() -> int:
        budget = ByteBudget(100)
        async with asyncio.timeout(5):
            await asyncio.gather(*(hold(budget, holder) for holder in range(20)))
        return budget._held

    assert asyncio.run(run()) == 0
    assert most <= 100 + 50


def test_one_body_larger_than_the_budget_still_gets_through() -> None:
    async def run() -> None:
        budget = ByteBudget(10)
        async with asyncio.timeout(5):
            for _ in range(10):
                await budget.grow(10, 1)
        budget.finish(100, 1)
        budget.release(100)

    asyncio.run(run())


def test_bytes_for_which_there_is_room_are_noted_at_once() -> None:
    budget = ByteBudget(100)
    assert [budget.took(amount) for amount in (60, 41, 40, 1)] == [True, False, True, False]
    budget.finish(60, holder=1)
    budget.release(60)
    assert budget.took(60)
