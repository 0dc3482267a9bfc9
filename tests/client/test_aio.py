"""What only the asyncio client promises: thousands of calls at a time, cancellation, event loops."""

from __future__ import annotations

import asyncio
import gc

import pytest

from kingtask import AsyncClient, AsyncTask
from kingtask.errors import ClientClosed, NoAnswer, TaskNotFound
from kingtask.states import State
from tests.client.processes import in_child, leaves_something
from tests.client.responder import PATIENCE_S, SILENCE, Responder, result, task_reply

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"


@pytest.fixture
async def client(broker: Responder):
    async with AsyncClient(broker.endpoint, timeout=PATIENCE_S) as made:
        yield made


async def test_thousands_of_calls_at_a_time_share_one_connection(broker: Responder, client: AsyncClient):
    async def story(i: int) -> str:
        task = await client.submit("example", [str(i)])
        return await task.result()

    assert await asyncio.gather(*map(story, range(3_000))) == [str(i) for i in range(3_000)]
    assert len(set(broker._peers)) == 1


async def test_replies_out_of_order(broker: Responder, client: AsyncClient):
    broker.script = lambda request: SILENCE
    asking = [asyncio.create_task(client.wait(f"{i}{ID[1:]}")) for i in range(5)]
    requests = await asyncio.to_thread(broker.received, 5)

    for request in reversed(requests):
        broker.push(request, task_reply(result(request["id"])))

    assert [found.id[0] for found in await asyncio.gather(*asking)] == list("01234")


async def test_more_calls_than_fit_into_a_stalled_connection(broker: Responder, client: AsyncClient):
    """They wait their turn, in order, and none is lost."""
    tasks = [asyncio.create_task(client.submit("example", ["x" * 1_000, str(i)])) for i in range(5_000)]

    await asyncio.gather(*tasks)

    assert [task["args"][1] for task in broker.tasks.values()] == [str(i) for i in range(5_000)]


async def test_a_cancelled_call_is_forgotten(broker: Responder, client: AsyncClient):
    broker.script = lambda request: SILENCE
    asking = asyncio.create_task(client.wait(ID))
    [request] = await asyncio.to_thread(broker.received, 1)

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert client._connection._connection is not None
    assert client._connection._connection.core.pending == 0
    broker.push(request, task_reply(result(ID)))
    broker.script = broker.succeed
    with pytest.raises(TaskNotFound):
        await client.get(ID)


async def test_an_iteration_that_is_left_forgets_its_calls(broker: Responder, client: AsyncClient):
    tasks = [await client.submit("example") for _ in range(3)]
    broker.script = lambda request: broker.succeed(request) if request["id"] == tasks[0].id else SILENCE
    completed = client.as_completed(tasks)
    assert (await anext(completed)).id == tasks[0].id

    await completed.aclose()  # type: ignore[attr-defined]

    assert client._connection._connection is not None
    assert client._connection._connection.core.pending == 0


async def test_other_coroutines_run_while_one_waits(broker: Responder, client: AsyncClient):
    broker.script = lambda request: SILENCE if request["op"] == "wait" else broker.succeed(request)
    waiting = asyncio.create_task(client.wait(ID))

    for _ in range(10):
        await client.ping()

    assert not waiting.done()
    broker.push(next(request for request in broker.requests if request["op"] == "wait"), task_reply(result(ID)))
    assert (await waiting).state is State.SUCCEEDED


async def test_the_whole_surface_is_awaited(broker: Responder, client: AsyncClient):
    task = await client.submit("example", ["57"])

    assert isinstance(task, AsyncTask)
    assert (await task.wait()).text == await task.result() == "57"
    assert [found.id async for found in client.as_completed([task])] == [task.id]


async def test_a_closed_client(broker: Responder):
    async with AsyncClient(broker.endpoint) as client:
        broker.script = lambda request: SILENCE
        asking = asyncio.create_task(client.wait(ID))
        await asyncio.to_thread(broker.received, 1)

    with pytest.raises(NoAnswer, match="closed"):
        await asking
    with pytest.raises(ClientClosed):
        await client.ping()


def test_nothing_is_left_behind(broker: Responder):
    broker.script = lambda request: SILENCE if request["op"] == "ping" else broker.succeed(request)

    async def story() -> None:
        async with AsyncClient(broker.endpoint, timeout=PATIENCE_S) as client:
            await asyncio.gather(*(client.submit("example") for _ in range(10)))
            with pytest.raises(NoAnswer):
                await client.ping(timeout=0.05)

    assert in_child(lambda: leaves_something(lambda: asyncio.run(story())), "") == 0


def test_a_client_that_is_dropped_unclosed_leaves_nothing_behind(broker: Responder):
    async def story() -> None:
        await AsyncClient(broker.endpoint, timeout=PATIENCE_S).submit("example")

    assert in_child(lambda: leaves_something(lambda: asyncio.run(story())), "") == 0


def test_one_that_another_thread_drops_is_closed_by_its_loop(broker: Responder):
    async def story() -> None:
        clients = [AsyncClient(broker.endpoint, timeout=PATIENCE_S)]
        await clients[0].ping()
        await asyncio.to_thread(clients.clear)
        await asyncio.to_thread(gc.collect)
        await asyncio.sleep(0)

    assert in_child(lambda: leaves_something(lambda: asyncio.run(story())), "") == 0


def test_a_client_goes_on_with_another_loop_when_its_own_is_closed(broker: Responder):
    client = AsyncClient(broker.endpoint, timeout=PATIENCE_S)

    assert asyncio.run(client.ping())["ready"]
    assert asyncio.run(client.ping())["ready"]

    asyncio.run(client.close())


async def test_two_loops_at_a_time_are_refused(broker: Responder, client: AsyncClient):
    await client.ping()

    with pytest.raises(RuntimeError, match="different event loop"):
        await asyncio.to_thread(asyncio.run, client.ping())

    assert (await client.ping())["ready"]


async def test_a_forked_child_has_a_loop_and_a_connection_of_its_own(broker: Responder, client: AsyncClient):
    await client.ping()

    status = await asyncio.to_thread(in_child, lambda: str(asyncio.run(client.ping())["ready"]), "True")

    assert status == 0
    assert (await client.ping())["ready"]
    assert len(set(broker._peers)) == 2
