"""The helper's client against a bare ROUTER that speaks the protocol, well or badly, and comes and goes."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from broker_listener import helper as h
from broker_listener.config import HelperConfig
from protocol import messages as m
from protocol.codec import decode_request, encode_reply

pytestmark = pytest.mark.library

DEADLINE = 60.0
ENTRY = m.ExecutorEntry(user="bob", os_user="bob", uid=1001, pid=77, since=1.5, cgroup=9)


class Router:
    """The helper's end: bound or not, answering as the test says; ``asked`` are the requests in order."""

    def __init__(self, path: Path) -> None:
        self._context = zmq.asyncio.Context()
        self._path = path
        self._task: asyncio.Task[None] | None = None
        self.asked: list[m.Request] = []
        self.answer: Callable[[m.Request], list[bytes]] = well_behaved
        self.peers: list[bytes] = []

    def bind(self) -> None:
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(f"ipc://{self._path}")
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def unbind(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close(linger=0)

    async def tell(self, *frames: bytes) -> None:
        await self._socket.send_multipart([self.peers[-1], *frames])

    async def _serve(self) -> None:
        while True:
            peer, frame = await self._socket.recv_multipart()
            self.peers.append(peer)
            request = decode_request(frame)
            self.asked.append(request)
            for reply in self.answer(request):
                await self._socket.send_multipart([peer, reply])

    def close(self) -> None:
        self._context.destroy(linger=0)


def well_behaved(request: m.Request) -> list[bytes]:
    if isinstance(request, m.ListExecutors):
        return [listed(request.id)]
    return [started(request.id)]


def listed(number: m.RequestId, *entries: m.ExecutorEntry, following: str | None = None) -> bytes:
    return encode_reply(m.Executors(number, entries, following, draining=False, free=5))


def started(number: m.RequestId) -> bytes:
    return encode_reply(m.Started(number, "bob", 1001, 77, 1.5, 9))


class Events:
    def __init__(self) -> None:
        self.told: list[object] = []

    def on_listed(self, executors: Mapping[str, m.ExecutorEntry], draining: bool, free: int, _asked: int) -> None:  # noqa: FBT001
        self.told.append((dict(executors), draining, free))

    def on_exited(self, exited: m.Exited, _heard: int) -> None:
        self.told.append(exited)

    def on_helper(self, connected: bool) -> None:  # noqa: FBT001
        self.told.append(connected)


async def true(condition: Callable[[], object]) -> None:
    """Wait until it is true; ``run`` has the deadline."""
    while not condition():  # noqa: ASYNC110 - what is waited for is a socket's
        await asyncio.sleep(0.005)


Check = Callable[[h.HelperClient, Router, Events], Awaitable[None]]


def run(tmp_path: Path, check: Check, timeout: float = 10.0, *, bound: bool = True) -> None:
    async def within_deadline() -> None:
        router = Router(tmp_path / "s")
        events = Events()
        client = h.HelperClient(HelperConfig(socket=str(tmp_path / "s"), timeout=timeout), events)
        async with asyncio.timeout(DEADLINE):
            if bound:
                router.bind()
            client.start()
            try:
                await check(client, router, events)
            finally:
                await client.close()
                if router._task is not None:
                    await router.unbind()
                router.close()

    asyncio.run(within_deadline())


def test_the_first_message_is_list_and_then_the_helper_is_there(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, events: Events) -> None:
        with pytest.raises(h.HelperAway):
            await client.ensure("bob")
        await true(lambda: client.connected)
        assert events.told == [({}, False, 5), True]
        assert (await client.ensure("bob")).reply == m.Started(router.asked[-1].id, "bob", 1001, 77, 1.5, 9)
        assert [type(request) for request in router.asked] == [m.ListExecutors, m.EnsureExecutor]

    run(tmp_path, check)


def test_the_client_s_own_end_is_no_fault_of_the_helper(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def check(client: h.HelperClient, _router: Router, _events: Events) -> None:
        await true(lambda: client.connected)

    run(tmp_path, check)
    assert "helper_down" not in caplog.text


def test_all_pages_of_the_list_are_read(tmp_path: Path) -> None:
    entries = [m.ExecutorEntry(f"u{number}", f"u{number}", 2000 + number, 9, 1.0, None) for number in range(5)]

    def in_pages(request: m.Request) -> list[bytes]:
        assert isinstance(request, m.ListExecutors)
        first = 0 if not request.after else int(request.after[1:]) + 1
        return [listed(request.id, entries[first], following=f"u{first}" if first < 4 else None)]

    async def check(client: h.HelperClient, router: Router, events: Events) -> None:
        router.answer = in_pages
        await true(lambda: client.connected)
        assert events.told[0] == ({entry.user: entry for entry in entries}, False, 5)

    run(tmp_path, check)


def test_pages_that_go_backwards_end_and_the_list_is_asked_again(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        router.answer = lambda request: [listed(request.id, ENTRY, following="bob")]
        await true(lambda: len(router.asked) >= 4)
        assert not client.connected
        afters = [request.after for request in router.asked if isinstance(request, m.ListExecutors)]
        assert afters[:4] == ["", "bob", "", "bob"]
        router.answer = well_behaved
        await true(lambda: client.connected)

    run(tmp_path, check)


def test_a_notice_may_stand_between_replies(tmp_path: Path) -> None:
    exited = m.Exited("bob", 1001, 77, None, 1)

    async def check(client: h.HelperClient, router: Router, events: Events) -> None:
        await true(lambda: client.connected)
        router.answer = lambda request: [encode_reply(exited), started(request.id)]
        assert isinstance((await client.ensure("bob")).reply, m.Started)
        assert events.told[-1] == exited

    run(tmp_path, check)


def test_answers_in_any_order_reach_who_asked(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        await true(lambda: client.connected)
        waiting: list[m.RequestId] = []

        def last_first(request: m.Request) -> list[bytes]:
            waiting.append(request.id)
            return [started(number) for number in reversed(waiting)] if len(waiting) == 50 else []

        router.answer = last_first
        replies = await asyncio.gather(*(client.ensure(f"u{number}") for number in range(50)))
        assert [heard.reply.id for heard in replies] == waiting
        assert client.ignored == 0

    run(tmp_path, check)


@pytest.mark.parametrize(
    "reply",
    [
        m.Refused(m.RequestId("x"), m.RefusedReason.UNKNOWN_USER),
        m.Failed(m.RequestId("x"), m.FailedReason.AT_CAPACITY, 5.0),
        m.Running(m.RequestId("x"), "bob", 1001, 77, 1.0, None),
    ],
)
def test_every_answer_to_ensure_is_given_as_it_is(tmp_path: Path, reply: m.Refused | m.Failed | m.Running) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        await true(lambda: client.connected)
        router.answer = lambda request: [
            encode_reply(reply).replace(b'"id":"x"', b'"id":%s' % json.dumps(request.id).encode())
        ]
        answer = (await client.ensure("bob")).reply
        assert type(answer) is type(reply)

    run(tmp_path, check)


def test_late_doubled_unknown_and_undecodable_answers_are_counted_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        await true(lambda: client.connected)
        router.answer = lambda request: [started(request.id), started(request.id), b"\xff\0{", b"", b"[" * 4000]
        assert isinstance((await client.ensure("bob")).reply, m.Started)
        await true(lambda: client.ignored == 4)
        for _ in range(100):
            await router.tell(started(m.RequestId("nobody")))
        await router.tell(b"two", b"frames")
        await true(lambda: client.ignored == 105)
        assert isinstance((await client.ensure("bob")).reply, m.Started)

    run(tmp_path, check)
    assert caplog.text.count("event=frame_ignored") == 10


def test_an_answer_of_the_wrong_kind_is_none(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        await true(lambda: client.connected)
        router.answer = lambda request: [encode_reply(m.Stopping(request.id))]
        with pytest.raises(h.HelperAway, match="Stopping"):
            await client.ensure("bob")

    run(tmp_path, check)


def test_a_request_without_an_answer_ends_with_its_time_and_is_not_repeated(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        await true(lambda: client.connected)
        router.answer = lambda _: []
        with pytest.raises(h.HelperAway, match="time is over"):
            await client.ensure("bob")
        assert len(router.asked) == 2
        assert client.connected
        assert not client._waiting

    run(tmp_path, check, timeout=1.0)


def test_when_the_helper_goes_everybody_who_waits_is_told_at_once(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, events: Events) -> None:
        await true(lambda: client.connected)
        router.answer = lambda _: []
        waiting = [asyncio.ensure_future(client.ensure(f"u{number}")) for number in range(20)]
        await true(lambda: len(router.asked) == 21)
        await router.unbind()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, h.HelperAway)
        assert events.told[-1] is False
        with pytest.raises(h.HelperAway):
            await client.ensure("bob")
        router.answer = well_behaved
        router.asked.clear()
        router.bind()
        await true(lambda: client.connected)
        assert [type(request) for request in router.asked] == [m.ListExecutors]
        assert events.told[-2:] == [({}, False, 5), True]

    run(tmp_path, check, timeout=600.0)


def test_a_helper_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        with pytest.raises(h.HelperAway):
            await client.ensure("bob")
        router.bind()
        await true(lambda: client.connected)

    run(tmp_path, check, bound=False)


def test_a_list_without_an_answer_is_asked_again(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, events: Events) -> None:
        router.answer = lambda _: []
        await true(lambda: len(router.asked) == 2)
        assert events.told == []
        router.answer = well_behaved
        await true(lambda: client.connected)

    run(tmp_path, check, timeout=1.0)


def test_too_many_requests_at_once_are_refused_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        await true(lambda: client.connected)
        monkeypatch.setattr(h, "MAX_WAITING", 3)
        router.answer = lambda _: []
        waiting = [asyncio.ensure_future(client.ensure(f"u{number}")) for number in range(4)]
        await true(waiting[3].done)
        with pytest.raises(h.HelperAway, match="3 requests wait"):
            await waiting[3]
        assert not any(one.done() for one in waiting[:3])
        await client.close()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(tmp_path, check)


def test_a_name_that_does_not_fit_a_request_is_not_sent(tmp_path: Path) -> None:
    async def check(client: h.HelperClient, router: Router, _events: Events) -> None:
        await true(lambda: client.connected)
        with pytest.raises(h.HelperAway):
            await client.ensure("x" * 2000)
        assert len(router.asked) == 1

    run(tmp_path, check)
