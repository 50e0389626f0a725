"""The seam into pika: what it relies on is there, and whatever way a broker cuts it, what arrives is what was sent."""

from itertools import pairwise
from types import SimpleNamespace

import pika.channel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from broker_listener import __main__ as command
from broker_listener.config import ListenerConfig
from broker_listener.large_body import MAX_ANNOUNCED, PIECE, LargeBody
from broker_listener.pacing import digest
from broker_listener.pika_seam import Broken, SteadyConnection, _Assembler, missing
from broker_listener.properties import RawProperties

LIMIT = 50
CUTS = st.lists(st.integers(0, 400), max_size=30)
BODIES = st.lists(st.binary(max_size=200), min_size=1, max_size=5)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Give the data in pieces that end at these places, where they are within it."""
    places = sorted({0, len(data), *(place for place in cuts if place < len(data))})
    return [data[start:end] for start, end in pairwise(places)]


def deliver() -> frame.Method:
    return frame.Method(1, spec.Basic.Deliver("c", 1, exchange="", routing_key="q"))


def header(size: int) -> frame.Header:
    return frame.Header(1, size, RawProperties())


def reader() -> tuple[SteadyConnection, list[frame.Frame]]:
    """Give a connection without a broker, and the frames that it reads."""
    connection, frames = SteadyConnection.__new__(SteadyConnection), []
    connection.__dict__.update(
        _unread=b"", bytes_received=0, params=SimpleNamespace(frame_max=4096), _process_frame=frames.append
    )
    return connection, frames


def test_this_pika_has_all_that_is_relied_on() -> None:
    """It runs at both ends of the versions."""
    assert missing() == []


def test_pika_with_another_inside_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would fail in other ways, later: exit 1, with the name of what is not there."""
    monkeypatch.setattr(pika.channel.Channel, "_handle_content_frame", lambda _self, _frame: None)
    assert missing() == ["channel.Channel._handle_content_frame: _content_assembler"]
    assert command._serve(ListenerConfig()) == 1
    assert "channel.Channel._handle_content_frame: _content_assembler" in capsys.readouterr().err
    monkeypatch.delattr(pika.channel, "Channel")
    assert len(missing()) == 2


@given(BODIES, CUTS)
def test_frames_are_the_same_however_they_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    """Each is handled once, in order, as soon as it is complete."""
    connection, frames = reader()
    data = b"".join(frame.Body(1, payload).marshal() for payload in payloads)
    for piece in cut(data, cuts):
        connection._on_data_available(piece)
    assert [one.fragment for one in frames] == payloads
    assert connection.bytes_received == len(data)
    assert connection._unread == b""


def test_frame_over_the_size_agreed_upon_is_refused_at_its_head() -> None:
    """Not when it has arrived."""
    connection, frames = reader()
    connection._on_data_available(frame.Body(1, bytes(4096 - 8)).marshal())
    assert len(frames) == 1
    with pytest.raises(Broken):
        connection._on_data_available(b"\3\0\1" + (4096 - 7).to_bytes(4, "big") + b"x")


def test_answer_of_a_broker_with_another_protocol_is_read() -> None:
    """It is eight bytes and no frame."""
    connection, frames = reader()
    connection._on_data_available(b"AMQP\0\0\x09\x01")
    assert [one.frame_type for one in frames] == [-1]


@given(BODIES, CUTS)
def test_messages_are_whole_however_their_bodies_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    """Up to the limit as bytes, above it as a large body; with nobody for that, as nothing."""
    begun: list[LargeBody] = []

    def begin(size: int) -> LargeBody:
        begun.append(LargeBody(size, kept=True))
        return begun[-1]

    assembler, without = _Assembler(LIMIT, begin), _Assembler(LIMIT, None)
    for body in bodies:
        whole = None
        for value in (deliver(), header(len(body)), *(frame.Body(1, piece) for piece in cut(body, cuts))):
            assert whole is None
            whole, nothing = assembler.process(value), without.process(value)
        assert whole is not None
        assert nothing is not None
        if len(body) <= LIMIT:
            assert whole[2] == nothing[2] == body
        else:
            assert whole[2] is begun[-1]
            assert nothing[2] == b""
            assert b"".join(begun[-1].taken()) == body


@pytest.mark.parametrize(
    "frames",
    [
        (deliver(), header(MAX_ANNOUNCED + 1)),
        (deliver(), deliver()),
        (header(1),),
        (frame.Body(1, b"x"),),
        (deliver(), header(2), header(2)),
        (deliver(), header(2), frame.Body(1, b"xyz")),
        (deliver(), header(200), frame.Body(1, bytes(201))),
        (deliver(), header(1), frame.Body(1, b"x"), frame.Body(1, b"")),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(frames: tuple[frame.Frame, ...]) -> None:
    """The last of these frames is the one that is refused."""
    assembler = _Assembler(LIMIT, None)
    for value in frames[:-1]:
        assembler.process(value)
    with pytest.raises(Broken):
        assembler.process(frames[-1])


@given(st.lists(st.binary(max_size=300_000), max_size=4), st.none() | st.binary(max_size=20))
def test_large_body_is_kept_in_blocks_of_one_size(fragments: list[bytes], message_id: bytes | None) -> None:
    """Whatever its frames are; and what its digest is of is the same."""
    whole = b"".join(fragments)
    body, thrown_away = LargeBody(len(whole), kept=True), LargeBody(len(whole), kept=False)
    for fragment in fragments:
        body.add(fragment)
        thrown_away.add(fragment)
    assert body.digest(message_id) == digest(whole, message_id)
    pieces = list(body.taken())
    assert b"".join(pieces) == whole
    assert all(len(piece) == PIECE for piece in pieces[:-1])
    assert list(thrown_away.taken()) == list(body.taken()) == []
