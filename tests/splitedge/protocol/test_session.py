from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge import errors, limits
from splitedge.protocol import frames
from splitedge.protocol.frames import Answer, Frame, Refusal
from splitedge.protocol.messages import (
    OLDEST_PROTOCOL,
    PROTOCOL_VERSION,
    Close,
    Failed,
    Open,
    Opened,
    Ping,
    Pong,
    SessionMessage,
    decode,
    encode,
)
from splitedge.protocol.session import TRANSITIONS, Input, Role, Session, State, transition_table, wire_error
from tests.raising import expect, raises


def text(message) -> str:
    return encode(message).decode()


def controls(session: Session) -> list:
    found = []
    while (message := session.next_control()) is not None:
        found.append(decode(message, SessionMessage))
    return found


def pair(window=4, **times) -> tuple[Session, Session]:
    """An agent and a server that have opened a stream."""
    agent, server = Session(Role.AGENT, 0.0, **times), Session(Role.SERVER, 0.0, **times)
    agent.open(Open("plan", window=window))
    assert server.receive(agent.next_control(), 0.0) == Open("plan", window=min(window, limits.MAX_WINDOW))
    server.opened()
    assert isinstance(agent.receive(server.next_control(), 0.0), Opened)
    return agent, server


def test_a_stream_opens_carries_frames_and_closes():
    agent, server = pair()
    frame = server.receive(agent.send(Frame(0, 1, 500, b"abc")), 1.0)
    assert frame == Frame(0, 1, 500, b"abc")
    agent.close()
    assert agent.state is State.CLOSING
    assert server.receive(agent.next_control(), 1.0) is None
    assert server.state is State.DRAINING
    answer = agent.receive(server.reply(Answer(0, 5, 6, b"xy")), 2.0)
    assert answer == Answer(0, 5, 6, b"xy")
    assert (agent.state, server.state) == (State.CLOSED, State.CLOSED)
    assert agent.error is None
    assert server.error is None


def test_the_server_may_close_and_still_answers():
    agent, server = pair()
    server.receive(agent.send(Frame(0, 0, 0, b"")), 0.0)
    server.close()
    agent.receive(server.next_control(), 0.0)
    assert agent.state is State.DRAINING
    assert not agent.has_room(0)
    agent.receive(server.reply(Refusal(0, {"code": "codec", "message": "no"})), 0.0)
    assert (agent.state, server.state) == (State.CLOSED, State.CLOSED)


def test_the_window_bounds_frames_in_flight():
    agent, server = pair(window=2)
    for seq in range(2):
        server.receive(agent.send(Frame(seq, 0, 0, b"")), 0.0)
    assert not agent.has_room(0)
    with raises(errors.ProtocolError, reason="window"):
        agent.send(Frame(2, 0, 0, b""))
    agent.receive(server.reply(Answer(0, 0, 0, b"")), 0.0)
    assert agent.has_room(0)


def test_the_window_bounds_bytes_in_flight():
    agent, _ = pair(window=60)
    payload = bytes(limits.MAX_FRAME_BYTES)
    agent.send(Frame(0, 0, 0, payload))
    agent.send(Frame(1, 0, 0, payload))
    assert agent.has_room(0)
    assert not agent.has_room(1)


def test_a_server_is_not_made_to_hold_more_than_the_window():
    _, server = pair(window=1)
    server.receive(frames.encode(Frame(0, 0, 0, b"")), 0.0)
    assert server.receive(frames.encode(Frame(1, 0, 0, b"")), 0.0) is None
    assert server.state is State.FAILED
    assert isinstance(server.error, errors.ProtocolError)
    assert isinstance(controls(server)[0], Failed)


@pytest.mark.parametrize("seq", [5, 4])
def test_a_number_that_does_not_ascend_fails_the_session(seq):
    _, server = pair()
    server.receive(frames.encode(Frame(5, 0, 0, b"")), 0.0)
    server.receive(frames.encode(Frame(seq, 0, 0, b"")), 0.0)
    expect(server.error, errors.ProtocolError, reason="frame-order")


def test_a_reply_to_no_frame_fails_the_session():
    agent, server = pair()
    server.receive(agent.send(Frame(0, 0, 0, b"")), 0.0)
    reply = server.reply(Answer(0, 0, 0, b""))
    agent.receive(reply, 0.0)
    agent.receive(reply, 0.0)
    assert isinstance(agent.error, errors.ProtocolError)


def test_failed_carries_the_error_to_the_peer():
    agent, server = pair()
    server.fail(errors.UnknownPlanError("ask for a new plan", plan="p"))
    agent.receive(server.next_control(), 0.0)
    assert agent.state is State.FAILED
    assert isinstance(agent.error, errors.UnknownPlanError)
    assert agent.error.data == {"plan": "p"}


@pytest.mark.parametrize("message", ['{"type": "failed", "error": {"data": {"self": 1, "message": 2}}}', "\ud800"])
def test_hostile_text_fails_the_session_and_raises_nothing(message):
    agent, _ = pair()
    assert agent.receive(message, 0.0) is None
    assert agent.state is State.FAILED


def test_a_window_is_cut_to_the_limit():
    agent, server = pair(window=10_000)
    assert agent.window == server.window == limits.MAX_WINDOW


@pytest.mark.parametrize("protocol", range(OLDEST_PROTOCOL, PROTOCOL_VERSION + 1))
def test_a_peer_of_an_older_protocol_is_served(protocol):
    server = Session(Role.SERVER, 0.0)
    assert server.receive(text(Open("p", protocol=protocol)), 0.0) == Open("p", protocol=protocol)


@pytest.mark.parametrize("protocol", [OLDEST_PROTOCOL - 1, PROTOCOL_VERSION + 1])
def test_another_protocol_is_refused(protocol):
    server = Session(Role.SERVER, 0.0)
    assert server.receive(text(Open("p", protocol=protocol)), 0.0) is None
    expect(server.error, errors.ProtocolError, reason="protocol-version")


@pytest.mark.parametrize("message", [Open("p", window=0), Open("p", topk=-1)])
def test_an_impossible_open_is_refused(message):
    server = Session(Role.SERVER, 0.0)
    assert server.receive(text(message), 0.0) is None
    assert isinstance(server.error, errors.ProtocolError)


def test_quiet_asks_for_a_ping_and_a_ping_is_answered():
    agent, server = pair(heartbeat_s=2.0, silence_s=6.0)
    agent.tick(1.9)
    assert controls(agent) == []
    assert agent.next_deadline() == 2.0
    agent.tick(2.0)
    assert controls(agent) == [Ping(0)]
    assert agent.next_deadline() == 4.0
    server.receive(text(Ping(7)), 2.0)
    assert controls(server) == [Pong(7)]


def test_a_flood_of_pings_queues_one_pong():
    agent, _ = pair()
    for nonce in range(100):
        agent.receive(text(Ping(nonce)), 0.0)
    assert controls(agent) == [Pong(99)]


def test_silence_ends_the_session_and_a_byte_puts_it_off():
    agent, _ = pair(heartbeat_s=2.0, silence_s=6.0)
    agent.heard(5.0)
    agent.tick(10.9)
    assert agent.state is State.OPEN
    agent.tick(11.0)
    assert agent.state is State.FAILED
    assert isinstance(agent.error, errors.LinkLostError)
    assert agent.broken


def test_a_long_message_on_its_way_does_not_stop_the_pings():
    """Its sender's pings wait behind it: ours are all that it hears."""
    server = pair(heartbeat_s=2.0, silence_s=6.0)[1]
    pings = []
    for second in range(1, 11):
        server.heard(float(second))
        server.tick(float(second))
        pings += controls(server)
    assert pings == [Ping(0)] * 5


def test_dribbled_bytes_do_not_hold_a_session_for_ever():
    server = Session(Role.SERVER, 0.0)
    for second in range(int(limits.REQUEST_TIMEOUT)):
        server.heard(float(second))
        server.tick(float(second))
    assert not server.ended
    server.heard(limits.REQUEST_TIMEOUT)
    server.tick(limits.REQUEST_TIMEOUT)
    assert server.ended


def test_a_server_that_never_opens_is_given_up():
    agent = Session(Role.AGENT, 0.0)
    agent.open(Open("p"))
    agent.receive(text(Ping(1)), limits.REQUEST_TIMEOUT - 1)
    agent.tick(limits.REQUEST_TIMEOUT)
    assert isinstance(agent.error, errors.LinkLostError)


def test_the_next_deadline_moves_past_a_tick():
    """A shell that sleeps until the deadline must not spin."""
    for session in (Session(Role.SERVER, 0.0), pair()[0], pair()[1]):
        now = 0.0
        while not session.ended:
            assert session.next_deadline() > now
            now = session.next_deadline()
            session.tick(now)
            controls(session)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("message", [Opened(1), Open("p"), Close(), Ping(1)])
def test_a_control_message_out_of_turn_fails_the_session(role, message):
    session = Session(role, 0.0)
    if (role, type(message)) == (Role.SERVER, Open):
        session.receive(text(message), 0.0)
    session.receive(text(message), 0.0)
    assert isinstance(session.error, errors.ProtocolError)


def test_an_error_with_large_or_odd_data_still_crosses():
    error = wire_error(errors.InputError("m" * 10_000, blob="x" * 100_000))
    assert len(error["message"]) == 500
    assert error["data"] == {}
    assert wire_error(errors.InputError("no", thing=object()))["data"] == {}
    assert wire_error(errors.InputError("no", size=3))["data"] == {"size": 3}


def test_every_live_state_can_fail_and_no_end_can_be_left():
    for state in State:
        ended = state in (State.CLOSED, State.FAILED)
        assert ((state, Input.FAIL) in TRANSITIONS) is not ended
        assert any(s is state for s, _ in TRANSITIONS) is not ended


def test_the_docs_show_the_table():
    lines = transition_table().splitlines()
    assert len(lines) == 2 + len(State)
    assert lines[2] == "| NEW | OPENING |  |  |  |  | CLOSED |  |  | FAILED |"
    document = Path(__file__).parents[3] / "docs/reference/wire-protocol.md"
    assert f"\n\n{transition_table()}\n\n" in document.read_text()


MESSAGES = st.one_of(
    st.sampled_from([Open("p"), Opened(2), Ping(1), Pong(1), Close(), Failed({"code": "plan", "message": "m"})]).map(
        text
    ),
    st.text(max_size=30),
    st.binary(max_size=60),
    st.builds(Frame, st.integers(0, 5), st.just(0), st.just(0), st.just(b"x")).map(frames.encode),
    st.builds(Answer, st.integers(0, 5), st.just(0), st.just(0), st.just(b"x")).map(frames.encode),
)


@given(st.sampled_from(Role), st.lists(st.tuples(MESSAGES, st.booleans(), st.floats(0, 3)), max_size=20))
def test_no_sequence_of_messages_raises(role, script):
    now = 0.0
    session = Session(role, now)
    if role is Role.AGENT:
        session.open(Open("p"))
    for message, act, wait in script:
        now += wait
        event = session.receive(message, now)
        if isinstance(event, Open) and act:
            session.opened()
        if isinstance(event, Frame) and act and not session.ended:
            session.reply(Answer(event.seq, 0, 0, b""))
        session.tick(now)
        controls(session)
        assert session.in_flight <= session.window
    assert (session.error is None) == (session.state is not State.FAILED)
