"""Several hosts: what each decides from what it has heard, with messages lost, late, doubled and out of order.

The model is the world: which hosts are up, which executors really run. It knows nothing of masks, pages or numbers.
"""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_listener.host_messages import MAX_BYTES, PAGE, Hello, HostMessage, HostState, Users, UserState, encode
from broker_listener.hosts import Changes, Hosts
from broker_listener.placement import DECLINED_FOR, MAX_USERS

USERS = ("alice", "bob", "carol", "dave")
BEAT = 5.0
DEAD_AFTER = 15.0
SHORT = 0.01


class World:
    """Hosts, their executors, and the exchange between them."""

    def __init__(self, names: list[str], wanted: int | None, capacity: int = 10) -> None:
        self.wanted, self.capacity, self.now, self.boots = wanted, capacity, 100.0, 0
        self.hosts: dict[str, Hosts] = {}
        self.state: dict[str, HostState] = {}
        self.running: dict[str, set[str]] = {name: set() for name in names}
        self.held: dict[str, set[str]] = {name: set() for name in names}
        self.starts: Counter[str] = Counter()
        self.refusing: set[tuple[str, str]] = set()
        self.inbox: dict[str, list[HostMessage]] = {name: [] for name in names}
        self.alarm = False
        for name in names:
            self.boot(name)

    def boot(self, name: str) -> None:
        """Start the host's listener; executors of before run on."""
        self.boots += 1
        self.hosts[name] = Hosts(name, f"{self.boots:016x}", self.wanted, DEAD_AFTER)
        self.state[name] = HostState.UP
        self.held[name], self.inbox[name] = set(), []
        for user in self.running[name]:
            self.hosts[name].own_user(user, UserState.READY, self.now)
        self.hosts[name].own_users_known()
        self.hosts[name].joined(self.now)
        self.say(name)

    def say(self, name: str) -> None:
        """Tell the others that the host lives, and whom it wants an executor for."""
        host = self.hosts[name]
        host.beat(self.state[name], max(0, self.capacity - len(self.running[name])))
        for user in sorted(self.held[name]):
            self.serve(name, user)
        self.publish(name)

    def publish(self, name: str) -> None:
        for message in self.hosts[name].take_messages(self.now):
            for receiver in self.hosts:
                if receiver != name and not self.alarm:
                    self.inbox[receiver].append(message)

    def deliver(self, name: str, message: HostMessage) -> None:
        self.follow(name, self.hosts[name].heard(message, self.now))
        self.publish(name)

    def deliver_all(self) -> None:
        for _ in range(20):
            for name in list(self.hosts):
                messages, self.inbox[name] = self.inbox[name], []
                for message in messages:
                    self.deliver(name, message)

    def follow(self, name: str, changes: Changes) -> None:
        """Do what a listener does when others have told it something."""
        for user in changes.wanted - self.running[name]:
            self.start(name, user)
        for user in changes.users & self.held[name]:
            self.serve(name, user)

    def job(self, name: str, user: str) -> None:
        self.held[name].add(user)
        self.serve(name, user)
        self.publish(name)

    def serve(self, name: str, user: str) -> None:
        """Run the user's jobs that the host holds where an executor is ready; else see to it that there will be one."""
        host = self.hosts[name]
        if user not in self.running[name] and host.starts_here(user, self.now):
            self.start(name, user)
        if host.placement.wanted_more(user):
            host.wants(user)
        if user in self.running[name] or host.placement.elsewhere(user):
            self.held[name].discard(user)

    def start(self, name: str, user: str) -> None:
        host = self.hosts[name]
        if (name, user) in self.refusing or self.state[name] is not HostState.UP:
            host.own_user(user, UserState.GONE, self.now)
            return
        host.own_user(user, UserState.STARTING, self.now)
        self.running[name].add(user)
        self.starts[user] += 1
        host.own_user(user, UserState.READY, self.now)

    def end(self, name: str, user: str) -> None:
        self.running[name].discard(user)
        self.hosts[name].own_user(user, UserState.GONE, self.now)
        self.publish(name)

    def kill(self, name: str) -> None:
        """Let the whole host be gone."""
        del self.hosts[name]
        self.running[name], self.held[name], self.inbox[name] = set(), set(), []

    def live(self, user: str) -> int:
        return sum(user in self.running[name] for name in self.hosts)

    def pass_time(self, seconds: float) -> None:
        """Let time pass in beats, with all that is said heard."""
        until = self.now + seconds
        while self.now < until:
            self.now += min(BEAT, until - self.now)
            for name, host in self.hosts.items():
                self.follow(name, host.time_passed(self.now))
                self.say(name)
            self.deliver_all()


def settled(names: list[str], wanted: int | None, capacity: int = 10) -> World:
    world = World(names, wanted, capacity)
    world.deliver_all()
    world.pass_time(2 * BEAT)
    return world


@pytest.mark.parametrize(("wanted", "expected"), [(None, 5), (1, 1), (2, 2), (9, 5)])
def test_a_users_first_job_starts_as_many_executors_as_wanted_wherever_it_arrives(
    wanted: int | None, expected: int
) -> None:
    for arrives_at in "abcde":
        world = settled(list("abcde"), wanted)
        world.job(arrives_at, "alice")
        world.deliver_all()
        assert world.live("alice") == expected == world.starts["alice"]
        assert world.held[arrives_at] == set()


def test_what_is_held_goes_when_another_host_is_ready() -> None:
    world = settled(["a", "b"], 1)
    host = next(name for name in "ab" if not world.hosts[name].starts_here("alice", world.now))
    world.job(host, "alice")
    assert world.held[host] == {"alice"}
    world.deliver_all()
    assert world.held[host] == set()
    assert world.hosts[host].placement.elsewhere("alice")


def test_a_host_that_is_not_heard_for_dead_after_is_replaced_and_no_sooner() -> None:
    world = settled(list("abc"), 1)
    world.job("a", "alice")
    world.deliver_all()
    (first,) = (name for name in "abc" if "alice" in world.running[name])
    world.kill(first)
    other = next(iter(world.hosts))
    world.pass_time(DEAD_AFTER - 2 * BEAT)
    assert world.hosts[other].placement.elsewhere("alice")
    world.pass_time(2 * BEAT)
    assert not world.hosts[other].placement.elsewhere("alice")
    world.job(other, "alice")
    world.deliver_all()
    assert world.live("alice") == 1


def test_a_silence_in_which_the_broker_lets_nobody_speak_is_nobodys_death() -> None:
    world = settled(["a", "b"], 1)
    world.alarm = True
    for _ in range(10):
        world.now += BEAT
        for host in world.hosts.values():
            host.nobody_can_speak(world.now)
            assert host.time_passed(world.now) == Changes()
    assert all(host.peers for host in world.hosts.values())


def test_a_draining_host_starts_nobody_and_keeps_whom_it_has() -> None:
    world = settled(list("abc"), 2)
    world.job("a", "alice")
    world.deliver_all()
    has = [name for name in "abc" if "alice" in world.running[name]]
    for name in has:
        world.state[name] = HostState.DRAINING
    world.pass_time(BEAT)
    (third,) = set("abc") - set(has)
    world.job(third, "alice")
    world.deliver_all()
    assert world.starts["alice"] == 2
    world.job(has[0], "bob")
    world.deliver_all()
    assert world.running[third] == {"bob"}


def test_a_host_that_cannot_start_a_user_is_passed_over_and_asked_again_later() -> None:
    world = settled(list("abc"), 1)
    order = sorted("abc", key=lambda name: not world.hosts[name].starts_here("alice", world.now))
    world.refusing = {(order[0], "alice")}
    world.job(order[1], "alice")
    world.deliver_all()
    world.pass_time(2 * BEAT)
    assert world.live("alice") == 1
    assert "alice" not in world.running[order[0]]
    (has,) = (name for name in "abc" if "alice" in world.running[name])
    world.refusing = set()
    world.end(has, "alice")
    world.deliver_all()
    world.pass_time(DECLINED_FOR + BEAT)
    world.job(has, "alice")
    world.deliver_all()
    assert "alice" in world.running[order[0]]


def test_a_listener_that_starts_anew_is_told_within_a_second_who_runs_whom_and_starts_nobody_twice() -> None:
    world = settled(list("abc"), 1)
    world.job("a", "alice")
    world.deliver_all()
    (has,) = (name for name in "abc" if "alice" in world.running[name])
    other = next(name for name in "abc" if name != has)
    world.boot(other)
    world.job(other, "alice")  # before anybody has answered
    assert world.held[other] == {"alice"}
    world.pass_time(0.6)
    assert world.held[other] == set()
    world.boot(has)
    world.deliver_all()
    world.job(other, "alice")
    world.deliver_all()
    assert world.starts["alice"] == 1


def test_hosts_that_join_or_leave_move_no_user_who_has_an_executor() -> None:
    world = settled(list("abcd"), 1)
    for number in range(40):
        world.job("a", f"user{number}")
    world.deliver_all()
    before = {user: name for name in world.running for user in world.running[name]}
    world.running["e"], world.held["e"] = set(), set()
    world.boot("e")
    world.pass_time(2 * BEAT)
    for user in before:
        world.job("b", user)
    world.deliver_all()
    assert {user: name for name in world.running for user in world.running[name]} == before
    assert len(set(before.values())) == 4


def test_two_hosts_of_one_name_are_noticed_and_never_believed_in_turns() -> None:
    world = settled(["a", "b"], 1)
    twin = Hosts("b", "f" * 16, 1, DEAD_AFTER)
    twin.own_users_known()
    twin.joined(world.now)
    for _ in range(4):
        twin.beat(HostState.UP, 3)
        for message in twin.take_messages(world.now):
            world.deliver("a", message)
            world.deliver("b", message)
        world.say("b")
        world.deliver_all()
    assert world.hosts["a"].namesakes
    assert world.hosts["b"].namesakes
    assert len(world.hosts["a"].peers) == 1


def test_users_of_many_pages_are_all_there_and_one_that_is_not_named_any_more_is_gone() -> None:
    world = World(["a", "b"], 1, capacity=5000)
    one = world.hosts["a"]
    for number in range(1200):
        one.own_user(f"user{number}", UserState.READY, world.now)
    world.inbox["b"].clear()
    one.joined(world.now)
    world.publish("a")
    assert all(len(encode(message)) <= MAX_BYTES for message in world.inbox["b"])
    world.deliver_all()
    there = world.hosts["b"].placement
    assert sum(there.elsewhere(f"user{number}") for number in range(1200)) == 1200
    world.pass_time(2 * BEAT)  # who has asked for everything was answered
    one.own_user("user7", UserState.GONE, world.now)
    one.take_messages(world.now)  # lost
    world.pass_time(2 * BEAT)
    assert not there.elsewhere("user7")
    assert there.elsewhere("user8")


def test_users_without_end_who_get_no_executor_leave_room_for_those_who_have_one() -> None:
    world = settled(["a", "b"], 1)
    there = world.hosts["a"].placement
    for number in range(MAX_USERS + 1000):
        there.user_is(f"nobody{number}", "b", UserState.GONE, world.now)
    there.user_is("alice", "b", UserState.READY, world.now)
    assert there.elsewhere("alice")


def test_our_own_executors_are_known_whatever_another_host_claims_to_have() -> None:
    world = settled(["a", "b"], 1)
    one = world.hosts["a"]
    for number in range(MAX_USERS + 1):
        one.placement.user_is(f"nobody{number}", "b", UserState.READY, world.now)
    one.own_user("alice", UserState.READY, world.now)
    assert one.placement.hosts_of("alice") == ["a"]


def pages_of(world: World, name: str, users: int) -> list[HostMessage]:
    """Give what the host tells when it is asked for everything: pages of that many users who are ready there."""
    host = world.hosts[name]
    for number in range(users):
        host.own_user(f"user{number}", UserState.READY, world.now)
    host.take_messages(world.now)
    host.joined(world.now)
    return host.take_messages(world.now)


def test_of_pages_whose_first_was_lost_nobody_is_taken_to_be_gone() -> None:
    world = settled(["a", "b"], 1)
    messages = pages_of(world, "a", 1200)
    for message in messages:
        world.deliver("b", message)
    first = next(number for number, message in enumerate(messages) if isinstance(message.content, Users))
    world.now += 60
    for message in [one for number, one in enumerate(pages_of(world, "a", 1200)) if number != first]:
        world.deliver("b", message)
    there = world.hosts["b"].placement
    assert all(there.elsewhere(f"user{number}") for number in range(1200))


def test_who_has_become_ready_between_two_pages_is_not_taken_to_be_gone() -> None:
    world = settled(["a", "b"], 1)
    *before, last = (message for message in pages_of(world, "a", 1200))
    between = last._replace(content=Users({"alice": UserState.READY, "user3": UserState.GONE}))
    for message in (*before, between, last._replace(seq=last.seq + 1)):
        world.deliver("b", message)
    there = world.hosts["b"].placement
    assert there.elsewhere("alice")
    assert not there.elsewhere("user3")
    assert sum(there.elsewhere(f"user{number}") for number in range(1200)) == 1199


def test_pages_without_end_take_no_memory() -> None:
    world = settled(["a", "b"], 1)
    host = world.hosts["b"]
    for number in range(2 * MAX_USERS // PAGE):
        users = {f"user{number}.{entry}": UserState.GONE for entry in range(PAGE)}
        host.heard(HostMessage("a", "e" * 16, 1000 + number, Users(users, number, 2**31)), world.now)
    assert sum(len(peer.snapshot or ()) for peer in host.peers.values()) <= MAX_USERS


def test_while_nothing_can_be_said_what_is_to_be_said_has_a_bound() -> None:
    alone = Hosts("a", "0" * 16, 1, DEAD_AFTER)
    for number in range(1000):
        alone.own_user(f"user{number}", UserState.GONE, 1.0)
        alone.wants(f"user{number}")
    alone.joined(1.0)
    alone.parted()
    for number in range(1000):
        alone.own_user(f"user{number}", UserState.GONE, 2.0)
        alone.wants(f"user{number}")
    assert (len(alone._changed), len(alone._wants)) == (0, 0)
    alone.joined(3.0)
    for number in range(2 * MAX_USERS):
        alone.own_user(f"user{number}", UserState.GONE, 3.0)
        alone.wants(f"user{number}")
    assert max(len(alone._changed), len(alone._wants)) <= MAX_USERS


def test_everything_is_asked_for_until_it_was_told_at_growing_pauses() -> None:
    world = settled(["a", "b"], 1)
    host, asked = world.hosts["b"], []
    world.hosts["a"].beat(HostState.UP, 3)
    world.hosts["a"].take_messages(world.now)  # lost, so that b misses one
    world.pass_time(SHORT)
    begin = world.now
    while world.now < begin + 120:
        world.now += 0.25
        asked += [world.now - begin for message in host.take_messages(world.now) if message.content == Hello()]
    assert 8 <= len(asked) <= 12
    pauses = [later - sooner for sooner, later in pairwise(asked)]
    assert pauses == sorted(pauses)
    world.pass_time(90)
    assert all(peer.complete for peer in host.peers.values())
    assert [message for message in host.take_messages(world.now + 100) if message.content == Hello()] == []


def test_who_is_asked_for_everything_without_end_tells_it_ever_more_seldom() -> None:
    world = settled(["a", "b"], 1)
    host, told = world.hosts["a"], 0
    host.own_user("alice", UserState.READY, world.now)
    host.take_messages(world.now)
    for number in range(600):
        world.now += 0.1
        host.heard(HostMessage("b", "d" * 16, number, Hello()), world.now)
        told += sum(isinstance(message.content, Users) for message in host.take_messages(world.now))
    assert 8 <= told <= 16


def test_who_does_not_hear_even_itself_for_dead_after_is_deaf() -> None:
    one = Hosts("a", "0" * 16, 1, DEAD_AFTER)
    assert not one.is_deaf(1000.0)
    one.joined(0.0)
    one.beat(HostState.UP, 3)
    (beat, *_) = one.take_messages(0.0)
    assert not one.is_deaf(DEAD_AFTER - 1)
    assert one.is_deaf(DEAD_AFTER)
    one.heard(beat, DEAD_AFTER)
    assert not one.is_deaf(2 * DEAD_AFTER - 1)
    one.nobody_can_speak(2 * DEAD_AFTER)
    assert not one.is_deaf(2 * DEAD_AFTER)
    one.parted()
    assert not one.is_deaf(9 * DEAD_AFTER)


def test_what_changes_in_one_moment_is_said_together() -> None:
    host = Hosts("a", "0" * 16, 1, DEAD_AFTER)
    host.own_users_known()
    host.joined(0.0)
    for number in range(5000):
        host.beat(HostState.UP, number)
        host.own_user(f"user{number}", UserState.STARTING, 0.0)
        host.own_user(f"user{number}", UserState.READY, 0.0)
        host.wants(f"other{number}")
    pages = 5000 // PAGE + 1
    said = host.take_messages(0.0)
    assert len(said) == 1 + 1 + 3 * pages, "a beat, a hello, what changed, what is wanted, and everything"
    assert [message for message in host.take_messages(0.02) if message.content != Hello()] == []


class Sites(RuleBasedStateMachine):
    """Anything that may happen to a few hosts; then the network is sound again, and the numbers must be as asked."""

    @initialize(count=st.integers(2, 7), wanted=st.sampled_from([None, 1, 2, 3]))
    def begin(self, count: int, wanted: int | None) -> None:
        self.world = settled([f"host{number}" for number in range(count)], wanted)
        self.trouble = 0

    def host(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.world.hosts)))

    @rule(data=st.data(), user=st.sampled_from(USERS))
    def a_job_arrives(self, data: st.DataObject, user: str) -> None:
        self.world.job(self.host(data), user)

    @rule(data=st.data())
    def messages_arrive(self, data: st.DataObject) -> None:
        name = self.host(data)
        for _ in range(data.draw(st.integers(1, 6))):
            inbox = self.world.inbox[name]
            if inbox:
                self.world.deliver(name, inbox.pop(0))

    @rule(data=st.data())
    def a_message_arrives_late_and_twice(self, data: st.DataObject) -> None:
        name = self.host(data)
        inbox = self.world.inbox[name]
        if inbox:
            self.trouble += 1
            message = inbox.pop(data.draw(st.integers(0, len(inbox) - 1)))
            self.world.deliver(name, message)
            self.world.deliver(name, message)

    @rule(data=st.data())
    def messages_are_lost(self, data: st.DataObject) -> None:
        self.trouble += 1
        self.world.inbox[self.host(data)].clear()

    @rule(seconds=st.sampled_from([SHORT, 1.0, BEAT, 2 * BEAT]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        for name, host in list(self.world.hosts.items()):
            self.world.follow(name, host.time_passed(self.world.now))
            self.world.say(name)
        self.trouble += 1  # nobody was heard meanwhile

    @precondition(lambda self: len(self.world.hosts) > 1)
    @rule(data=st.data())
    def a_host_dies(self, data: st.DataObject) -> None:
        self.trouble += 1
        self.world.kill(self.host(data))

    @rule(data=st.data())
    def a_host_comes(self, data: st.DataObject) -> None:
        gone = sorted(set(self.world.running) - set(self.world.hosts))
        if gone:
            self.world.boot(data.draw(st.sampled_from(gone)))

    @rule(data=st.data())
    def a_listener_is_restarted(self, data: st.DataObject) -> None:
        self.trouble += 1
        self.world.boot(self.host(data))

    @rule(data=st.data(), state=st.sampled_from([HostState.UP, HostState.DRAINING]))
    def a_host_is_drained_or_taken_up_again(self, data: st.DataObject, state: HostState) -> None:
        name = self.host(data)
        self.world.state[name] = state
        self.world.say(name)

    @rule(data=st.data(), user=st.sampled_from(USERS))
    def an_executor_ends(self, data: st.DataObject, user: str) -> None:
        name = self.host(data)
        if user in self.world.running[name]:
            self.world.end(name, user)

    @invariant()
    def there_are_never_many_too_many(self) -> None:
        if not hasattr(self, "world"):
            return
        for user in USERS:
            wanted = self.world.wanted or len(self.world.running)
            assert self.world.live(user) <= wanted + self.trouble

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.pass_time(DEAD_AFTER + 2 * BEAT)
        world.deliver_all()
        holders = [(name, user) for name in world.hosts for user in sorted(world.held[name])]
        up = [name for name in world.hosts if world.state[name] is HostState.UP]
        if up:
            assert holders == [], "jobs are held though hosts take executors"
        for user in USERS:
            world.job(next(iter(world.hosts)), user)
        world.pass_time(3 * BEAT)
        for user in USERS:
            possible = len({name for name in world.hosts if user in world.running[name]} | set(up))
            assert world.live(user) >= min(world.wanted or possible, possible)
        starts = world.starts.copy()
        for _ in range(5):
            for name in world.hosts:
                for user in USERS:
                    world.job(name, user)
            world.pass_time(BEAT)
        assert world.starts == starts, "executors are started though all are there"


Sites.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestSites = Sites.TestCase
