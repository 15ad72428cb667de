"""The life of one pylb process: what a signal means in each phase, as one literal table.

    starting ──► serving ◄──► upgrading ──► parting ──► leaving ──► hastened
                    │
                    └──► stopping

Three promises follow from the table, and tests/app/test_phases.py plays every order of signals against them:

- After a reload was asked for, in any phase, one begins later in whichever process is in charge (repeats may merge),
  unless the service ends.
- After a stop was asked of a process that is in charge, or on its way to it, the service ends.
- At most one process is in charge.

What cannot be done now is remembered, and played again when the phase ends; what was meant for the service and reaches
a process that is no longer it is sent on to its successor.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Phase(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    UPGRADING = "upgrading"  # a successor is being started; this process is in charge until it sends "go"
    PARTING = "parting"  # a successor is in charge, but nobody else knows yet: a signal is meant for the service
    LEAVING = "leaving"  # this process only ends its sessions
    HASTENED = "hastened"  # leaving, and asked to be quick
    STOPPING = "stopping"


class Trigger(StrEnum):
    RELOAD = "SIGHUP"
    REOPEN = "SIGUSR1"
    UPGRADE = "SIGUSR2"
    STOP = "SIGTERM"
    STARTED = "started"
    TAKEN_OVER = "taken over"  # the successor is in charge from here on
    PARTED = "parted"  # the caller that asked for the upgrade is about to be answered
    UPGRADE_FAILED = "upgrade failed"  # this process stays in charge
    FAILED = "failed"  # an essential part has failed


class Action(StrEnum):
    RELOAD = "reload"
    REOPEN = "reopen"  # the log's file
    UPGRADE = "upgrade"  # begin to start a successor
    STOP = "stop"  # end the service: no new sessions, the live ones have timeouts.shutdown
    LEAVE = "leave"  # end this process alone: the live sessions have timeouts.upgrade
    HASTEN = "hasten"  # they have timeouts.shutdown now
    END_NOW = "end now"  # the live sessions are reset
    FORWARD = "forward"  # the signal, to the successor
    REFUSE = "refuse"  # say in the log that the signal has no effect
    REMEMBER = "remember"
    REPLAY = "replay"  # what is remembered, as if it came now
    FORWARD_ALL = "forward all"  # what is remembered, to the successor


A, T, P = Action, Trigger, Phase
TABLE: Mapping[tuple[Phase, Trigger], tuple[Phase, tuple[Action, ...]]] = MappingProxyType(
    {
        (P.STARTING, T.RELOAD): (P.STARTING, (A.REMEMBER,)),
        (P.STARTING, T.REOPEN): (P.STARTING, (A.REOPEN,)),
        (P.STARTING, T.UPGRADE): (P.STARTING, (A.REMEMBER,)),
        (P.STARTING, T.STOP): (P.STARTING, (A.REMEMBER,)),
        (P.STARTING, T.FAILED): (P.STARTING, (A.REMEMBER,)),
        (P.STARTING, T.STARTED): (P.SERVING, (A.REPLAY,)),
        (P.SERVING, T.RELOAD): (P.SERVING, (A.RELOAD,)),
        (P.SERVING, T.REOPEN): (P.SERVING, (A.REOPEN,)),
        (P.SERVING, T.UPGRADE): (P.UPGRADING, (A.UPGRADE,)),
        (P.SERVING, T.STOP): (P.STOPPING, (A.STOP,)),
        (P.SERVING, T.FAILED): (P.STOPPING, (A.STOP,)),
        (P.UPGRADING, T.RELOAD): (P.UPGRADING, (A.REMEMBER,)),
        # Both processes: the successor may have opened the same file before it was moved away.
        (P.UPGRADING, T.REOPEN): (P.UPGRADING, (A.REOPEN, A.REMEMBER)),
        (P.UPGRADING, T.UPGRADE): (P.UPGRADING, (A.REFUSE,)),
        (P.UPGRADING, T.STOP): (P.UPGRADING, (A.REMEMBER,)),
        (P.UPGRADING, T.FAILED): (P.UPGRADING, (A.REMEMBER,)),
        (P.UPGRADING, T.TAKEN_OVER): (P.PARTING, (A.FORWARD_ALL,)),
        (P.UPGRADING, T.UPGRADE_FAILED): (P.SERVING, (A.REPLAY,)),
        (P.PARTING, T.RELOAD): (P.PARTING, (A.FORWARD,)),
        (P.PARTING, T.REOPEN): (P.PARTING, (A.REOPEN, A.FORWARD)),
        (P.PARTING, T.UPGRADE): (P.PARTING, (A.FORWARD,)),
        (P.PARTING, T.STOP): (P.PARTING, (A.FORWARD,)),
        (P.PARTING, T.FAILED): (P.PARTING, ()),
        (P.PARTING, T.PARTED): (P.LEAVING, (A.LEAVE,)),
        (P.LEAVING, T.RELOAD): (P.LEAVING, (A.FORWARD,)),
        (P.LEAVING, T.REOPEN): (P.LEAVING, (A.REOPEN, A.FORWARD)),
        (P.LEAVING, T.UPGRADE): (P.LEAVING, (A.FORWARD,)),
        (P.LEAVING, T.STOP): (P.HASTENED, (A.HASTEN,)),
        (P.LEAVING, T.FAILED): (P.LEAVING, ()),
        (P.HASTENED, T.RELOAD): (P.HASTENED, (A.FORWARD,)),
        (P.HASTENED, T.REOPEN): (P.HASTENED, (A.REOPEN, A.FORWARD)),
        (P.HASTENED, T.UPGRADE): (P.HASTENED, (A.FORWARD,)),
        (P.HASTENED, T.STOP): (P.HASTENED, (A.END_NOW,)),
        (P.HASTENED, T.FAILED): (P.HASTENED, ()),
        (P.STOPPING, T.RELOAD): (P.STOPPING, (A.REFUSE,)),
        (P.STOPPING, T.REOPEN): (P.STOPPING, (A.REOPEN,)),
        (P.STOPPING, T.UPGRADE): (P.STOPPING, (A.REFUSE,)),
        (P.STOPPING, T.STOP): (P.STOPPING, (A.END_NOW,)),
        (P.STOPPING, T.FAILED): (P.STOPPING, ()),
    }
)
# On replay, what ends the service comes first: then nothing else needs to begin.
_FIRST = (T.FAILED, T.STOP)


class PhaseMachine:
    """The phase of this process, and the signals that it remembers."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.failed = False  # has an essential part failed?
        self._remembered: dict[Trigger, None] = {}  # a set in its order

    def on(self, trigger: Trigger) -> list[tuple[Action, Trigger]]:
        """The actions to be done now, in order, each with the trigger that caused it.

        Raises KeyError: this phase has no such trigger, which is a bug.
        """
        self.phase, actions = TABLE[self.phase, trigger]
        self.failed |= trigger is Trigger.FAILED
        found: list[tuple[Action, Trigger]] = []
        for action in actions:
            if action is Action.REMEMBER:
                self._remembered[trigger] = None
            elif action is Action.REPLAY:
                for one in self._forget():
                    found += self.on(one)
            elif action is Action.FORWARD_ALL:
                found += [(Action.FORWARD, one) for one in self._forget() if one is not Trigger.FAILED]
            else:
                found.append((action, trigger))
        return found

    def _forget(self) -> list[Trigger]:
        remembered, self._remembered = self._remembered, {}
        if Trigger.FAILED in remembered:
            remembered.pop(Trigger.STOP, None)  # a failure stops the service already; a second stop would mean "now"
        return sorted(remembered, key=lambda trigger: trigger not in _FIRST)
