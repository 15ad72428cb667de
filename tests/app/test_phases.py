"""Phases and signals: the table is complete, and keeps its three promises in whatever order things happen."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylb.app.phases import TABLE, Action, Phase, PhaseMachine, Trigger

SIGNALS = (Trigger.RELOAD, Trigger.REOPEN, Trigger.UPGRADE, Trigger.STOP)


def test_every_signal_and_a_failure_mean_something_in_every_phase() -> None:
    for phase in Phase:
        for trigger in (*SIGNALS, Trigger.FAILED):
            assert (phase, trigger) in TABLE


def test_what_cannot_happen_is_a_bug_and_raises() -> None:
    with pytest.raises(KeyError):
        PhaseMachine().on(Trigger.TAKEN_OVER)


def in_phase(phase: Phase) -> PhaseMachine:
    way: dict[Phase, tuple[Trigger, ...]] = {
        Phase.STARTING: (),
        Phase.SERVING: (Trigger.STARTED,),
        Phase.UPGRADING: (Trigger.STARTED, Trigger.UPGRADE),
        Phase.PARTING: (Trigger.STARTED, Trigger.UPGRADE, Trigger.TAKEN_OVER),
        Phase.LEAVING: (Trigger.STARTED, Trigger.UPGRADE, Trigger.TAKEN_OVER, Trigger.PARTED),
        Phase.HASTENED: (Trigger.STARTED, Trigger.UPGRADE, Trigger.TAKEN_OVER, Trigger.PARTED, Trigger.STOP),
        Phase.STOPPING: (Trigger.STARTED, Trigger.STOP),
    }
    life = PhaseMachine()
    for trigger in way[phase]:
        life.on(trigger)
    assert life.phase is phase
    return life


@pytest.mark.parametrize("trigger", [Trigger.RELOAD, Trigger.REOPEN, Trigger.UPGRADE])
@pytest.mark.parametrize("phase", [Phase.PARTING, Phase.LEAVING, Phase.HASTENED])
def test_what_was_meant_for_the_service_is_sent_on(phase: Phase, trigger: Trigger) -> None:
    assert (Action.FORWARD, trigger) in in_phase(phase).on(trigger)


def test_a_failure_and_a_stop_during_an_upgrade_are_one_stop() -> None:
    """Two would mean "now", and reset every session."""
    life = in_phase(Phase.UPGRADING)
    for trigger in (Trigger.STOP, Trigger.FAILED, Trigger.RELOAD):
        assert life.on(trigger) == []
    assert life.on(Trigger.UPGRADE_FAILED) == [(Action.STOP, Trigger.FAILED), (Action.REFUSE, Trigger.RELOAD)]
    assert life.phase is Phase.STOPPING


def test_a_failed_part_of_the_old_one_does_not_stop_the_new_one() -> None:
    life = in_phase(Phase.UPGRADING)
    life.on(Trigger.FAILED)
    assert life.on(Trigger.TAKEN_OVER) == []
    assert life.on(Trigger.PARTED) == [(Action.LEAVE, Trigger.PARTED)]


@pytest.mark.parametrize("phase", Phase)
def test_a_failed_part_is_not_forgotten_whatever_is_done_about_it(phase: Phase) -> None:
    """The process ends with an error, then, also when a stop was asked for behind it."""
    life = in_phase(phase)
    assert not life.failed
    life.on(Trigger.FAILED)
    life.on(Trigger.STOP)
    assert life.failed


def test_a_stop_that_came_before_anybody_knew_of_the_new_one_ends_the_service() -> None:
    assert in_phase(Phase.PARTING).on(Trigger.STOP) == [(Action.FORWARD, Trigger.STOP)]
    assert in_phase(Phase.LEAVING).on(Trigger.STOP) == [(Action.HASTEN, Trigger.STOP)]


def test_signals_during_an_upgrade_go_to_the_new_one_once_each() -> None:
    life = in_phase(Phase.UPGRADING)
    for _ in range(2):
        for trigger in (Trigger.RELOAD, Trigger.REOPEN, Trigger.STOP):
            life.on(trigger)
    sent = [about for action, about in life.on(Trigger.TAKEN_OVER) if action is Action.FORWARD]
    assert sorted(sent) == sorted([Trigger.RELOAD, Trigger.REOPEN, Trigger.STOP])


def test_an_upgrade_asked_for_during_the_start_begins_after_it() -> None:
    life = PhaseMachine()
    life.on(Trigger.UPGRADE)
    life.on(Trigger.RELOAD)
    assert life.on(Trigger.STARTED) == [(Action.UPGRADE, Trigger.UPGRADE)]
    assert life.on(Trigger.UPGRADE_FAILED) == [(Action.RELOAD, Trigger.RELOAD)]


# ---------------------------------------------------------------- several processes


@dataclass
class OneProcess:
    """A life, and what a real process does about its actions: reloads at once, a successor in several steps."""

    born: int  # when it reads its config and opens its log for the first time
    life: PhaseMachine = field(default_factory=PhaseMachine)
    done: dict[Trigger, int] = field(default_factory=dict)  # when it last began to reload, and to reopen its log
    successor: "OneProcess | None" = None
    dead: bool = False

    @property
    def in_charge(self) -> bool:
        return not self.dead and self.life.phase in (Phase.SERVING, Phase.UPGRADING)


class Machine:
    """One pylb and its successors, one after the other. `now` counts the steps."""

    def __init__(self) -> None:
        self.all = [OneProcess(0)]
        self.now = 0
        self.asked: dict[Trigger, int] = {}  # when it was last asked for
        self.stopped = False  # a stop was asked of the one in charge, or on its way to it

    def happens(self, process: OneProcess, trigger: Trigger) -> None:
        if process.dead:
            return
        for action, about in process.life.on(trigger):
            match action:
                case Action.RELOAD | Action.REOPEN:
                    process.done[about] = self.now
                case Action.UPGRADE:
                    process.successor = OneProcess(self.now)
                    self.all.append(process.successor)
                case Action.FORWARD:
                    assert process.successor is not None
                    self.happens(process.successor, about)

    def succeed(self, process: OneProcess) -> None:
        """The successor serves: "go". In the step after, whoever asked for the upgrade is answered."""
        if not process.dead and process.life.phase is Phase.PARTING:
            self.happens(process, Trigger.PARTED)
        if process.dead or process.life.phase is not Phase.UPGRADING:
            return
        assert process.successor is not None
        self.happens(process, Trigger.TAKEN_OVER)
        if process.successor is not None:
            self.happens(process.successor, Trigger.STARTED)

    def fail(self, process: OneProcess) -> None:
        """The successor died or took too long, and was killed."""
        if process.dead or process.life.phase is not Phase.UPGRADING:
            return
        assert process.successor is not None
        process.successor.dead = True
        process.successor = None
        self.happens(process, Trigger.UPGRADE_FAILED)

    def start(self) -> None:
        """The first one has started; the others do so as successors."""
        if self.all[0].life.phase is Phase.STARTING:
            self.happens(self.all[0], Trigger.STARTED)

    def signalled(self, process: OneProcess, trigger: Trigger) -> None:
        phase = process.life.phase
        if process.dead or (phase is Phase.STARTING and process is not self.all[0]):
            return  # nobody knows of a successor before it is the service
        if trigger is Trigger.STOP:
            self.stopped |= phase in (
                Phase.STARTING,
                Phase.SERVING,
                Phase.UPGRADING,
                Phase.PARTING,
                Phase.STOPPING,
            )
        elif trigger is not Trigger.UPGRADE:
            self.asked[trigger] = self.now
        self.happens(process, trigger)

    def step(self, process: OneProcess, what: Trigger | str) -> None:
        self.now += 1
        match what:
            case "start":
                self.start()
            case "succeed":
                self.succeed(process)
            case "fail":
                self.fail(process)
            case Trigger.FAILED:
                self.happens(process, Trigger.FAILED)
            case Trigger():
                self.signalled(process, what)

    def settle(self) -> None:
        """All that is under way comes to an end."""
        for _ in range(50):
            self.now += 1
            before = len(self.all), [one.life.phase for one in self.all]
            self.start()
            for process in list(self.all):
                self.succeed(process)
            if before == (len(self.all), [one.life.phase for one in self.all]):
                return
        raise AssertionError("it never comes to rest")

    def in_charge(self) -> list[OneProcess]:
        return [one for one in self.all if one.in_charge]


OFTEN = ["start", "succeed", Trigger.UPGRADE, Trigger.RELOAD, Trigger.REOPEN]
SELDOM = ["fail", Trigger.STOP, Trigger.FAILED]  # after a stop there is little left to go wrong
STEPS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(OFTEN * 3 + SELDOM)), max_size=20)


@settings(max_examples=500, deadline=None)
@given(STEPS)
def test_no_order_of_signals_is_lost(steps: list[tuple[int, Trigger | str]]) -> None:
    machine = Machine()
    for which, what in steps:
        machine.step(machine.all[which % len(machine.all)], what)
        assert len(machine.in_charge()) <= 1
    machine.settle()
    left = machine.in_charge()
    if machine.stopped:
        assert left == []
    for one in left:
        for trigger, when in machine.asked.items():
            assert one.done.get(trigger, one.born) >= when


@pytest.mark.parametrize("signals", [(Trigger.RELOAD,), (Trigger.REOPEN,), (Trigger.RELOAD, Trigger.REOPEN)])
@pytest.mark.parametrize("at", range(5))
def test_that_property_is_not_empty(at: int, signals: tuple[Trigger, ...]) -> None:
    """At each moment of an upgrade there is one in charge in the end, and it has done what was asked."""
    machine = Machine()
    for number, what in enumerate(["start", Trigger.UPGRADE, "succeed", "succeed", "nothing"]):
        if number == at:
            for signal in signals:
                machine.step(machine.all[0], signal)
        machine.step(machine.all[0], what)
    machine.settle()
    [one] = machine.in_charge()
    assert one is machine.all[1]
    assert all(one.done.get(signal, one.born) >= machine.asked[signal] for signal in signals)
