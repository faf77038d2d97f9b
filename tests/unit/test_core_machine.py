"""Core against a guest in memory under random events: what must hold after every one of them, and in the end."""

from __future__ import annotations

import signal
from typing import Any

import hypothesis.strategies as st
from fakes.drive import Asked, Drive
from fakes.guest import Action, Freezer, Guest, Process, Thawer
from fakes.scenarios import NEWS_LIMIT
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

KINDS: dict[str, type[Freezer | Thawer]] = {"va.fsfreeze": Freezer, "thaw": Thawer}


class CoreMachine(RuleBasedStateMachine):
    """`held` is whether all has been frozen since a freeze was answered; None while no answer stands."""

    def __init__(self) -> None:
        super().__init__()
        self.drive = Drive(sync_limit=50, freeze_limit=20, hold_limit=30, thaw_limit=5)
        self.guest = Guest(1)
        self.processes: dict[int, Freezer | Thawer] = {}
        self.freezes: list[Asked] = []
        self.thaws: list[tuple[Asked, bool | None]] = []
        self.held: bool | None = None
        self.asked = False
        self.told = False
        self.stopped = False

    @initialize(count=st.integers(1, 3))
    def made(self, count: int) -> None:
        self.guest = Guest(count)

    # -- the world

    def _look(self) -> None:
        """Meet the workers that were forked, see what was answered, let a little time pass."""
        self.drive.now += 1e-4
        for number in self.drive.live - self.processes.keys():
            kind = KINDS[self.drive.spawned[number].rpc]
            self.processes[number] = kind(self.drive, self.guest, number)
        for number in self.processes.keys() - self.drive.live:
            del self.processes[number]
        for call in [c for c in self.freezes if c.answered]:
            self.freezes.remove(call)
            if not isinstance(call.answers[0], Fault):
                self.held, self.asked, self.told = True, False, False
        if self.held is not None and not self.asked:
            self.held = self.held and self.guest.all_frozen

    def _alive(self) -> list[Process]:
        return [p for n, p in sorted(self.processes.items()) if n not in self.drive.killed]

    def _choices(self) -> list[tuple[Freezer | Thawer, Action]]:
        found = []
        for number, process in sorted(self.processes.items()):
            if number not in self.drive.killed:
                found += [(process, action) for action in process.actions()]
        return found

    @rule(data=st.data())
    @precondition(lambda self: self._choices())
    def a_worker_acts(self, data: st.DataObject) -> None:
        process, action = data.draw(st.sampled_from(self._choices()))
        process.act(action)
        self._look()

    @rule(steps=st.integers(1, 25))
    @precondition(lambda self: self._alive())
    def workers_go_on(self, steps: int) -> None:
        for _ in range(steps):
            for process in self._alive():
                self._go_on(process)
            self._look()

    @rule(data=st.data())
    @precondition(lambda self: any(p.pipe for p in self.processes.values()))
    def a_report_is_read(self, data: st.DataObject) -> None:
        speakers = [p for _, p in sorted(self.processes.items()) if p.pipe]
        data.draw(st.sampled_from(speakers)).deliver()
        self._look()

    @rule()
    @precondition(lambda self: any(p.pipe for p in self.processes.values()))
    def all_reports_are_read(self) -> None:
        for _, process in sorted(self.processes.items()):
            while process.pipe and process.number in self.drive.live:
                process.deliver()
        self._look()

    @rule(data=st.data(), take_effect=st.booleans())
    @precondition(lambda self: self.processes)
    def a_worker_dies(self, data: st.DataObject, take_effect: bool) -> None:
        data.draw(st.sampled_from([p for _, p in sorted(self.processes.items())])).end(signal.SIGKILL, take_effect)
        self._look()

    @rule(data=st.data(), take_effect=st.booleans())
    @precondition(lambda self: self.drive.killed & self.drive.live)
    def a_killed_worker_ends(self, data: st.DataObject, take_effect: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.drive.killed & self.drive.live)))
        self.processes[number].end(signal.SIGKILL, take_effect)
        self._look()

    @rule(data=st.data())
    @precondition(lambda self: self.guest.issued)
    def a_disk_recovers(self, data: st.DataObject) -> None:
        mount = data.draw(st.sampled_from(sorted(self.guest.issued)))
        worker = self.guest.issued.pop(mount)
        self.guest.frozen.add(mount)
        self.processes[worker].mounts[mount] = "effective"
        self._look()

    @rule(data=st.data())
    @precondition(lambda self: self._alive())
    def a_worker_talks_rubbish(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self._alive()))
        worker.pipe.clear()
        self.drive.feed(events.RubbishReported(worker.number, "not a message"))
        self._look()

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.5, 6.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.drive.wait(seconds)
        self._look()

    @rule()
    def the_next_deadline_comes(self) -> None:
        due = self.drive.timers.nearest()
        if due is not None:
            self.drive.wait(max(0.0, due - self.drive.now))
        self._look()

    @rule(seconds=st.sampled_from([1.5, 6.0, 25.0]))
    def the_machine_is_paused(self, seconds: float) -> None:
        """Let many deadlines pass before the next event comes; Hypothesis leaves this rule out of some runs."""
        self.drive.now += seconds

    # -- hosts

    @rule(wait=st.sampled_from([None, 0.0, 3.0]))
    def a_host_freezes(self, wait: float | None) -> None:
        if self.drive.core.thawed:
            self.held = None
        self.freezes.append(self.drive.ask("va.fsfreeze", {} if wait is None else {"wait": wait}))
        self._look()

    @rule(wait=st.sampled_from([None, None, 0.0, 3.0]))
    def a_host_thaws(self, wait: float | None) -> None:
        held = self.held
        self.asked = True
        self.thaws.append((self.drive.ask("va.fsthaw", {} if wait is None else {"wait": wait}), held))
        self._look()

    @rule(seconds=st.sampled_from([0.5, 20.0, 1e4]))
    def a_host_extends(self, seconds: float) -> None:
        self.drive.ask("va.fshold", seconds)
        self._look()

    @rule()
    def a_host_polls(self) -> None:
        seq = self.drive.status().seq
        self.drive.ask("va.fsstatus", {"since": seq, "wait": 10})
        self._look()

    @rule(data=st.data(), all_of_it=st.booleans())
    @precondition(lambda self: self._waiting())
    def a_host_goes_away(self, data: st.DataObject, all_of_it: bool) -> None:
        call = data.draw(st.sampled_from(self._waiting()))
        (self.drive.hang_up if all_of_it else self.drive.give_up)(call)
        self._look()

    @rule()
    @precondition(lambda self: not self.stopped and len(self.drive.effects) > 200)
    def it_is_told_to_stop(self) -> None:
        self.stopped = True
        self.drive.feed(events.Stopped("SIGTERM"))
        self._look()

    @rule(error=st.booleans())
    def forks_fail_or_not(self, error: bool) -> None:
        self.drive.fork_error = OSError(11, "Resource temporarily unavailable") if error else None

    def _waiting(self) -> list[Asked]:
        return [a for a in self.drive.asked if not a.answered and not a.gone]

    # -- what must always hold

    @invariant()
    def thawed_means_thawed(self) -> None:
        if self.drive.core.thawed:
            assert not self.guest.frozen
            assert not self.guest.issued
            told = {worker for worker, message in self.drive.told if isinstance(message, messages.Proceed)}
            thawers = {worker for worker in self.drive.live if self.drive.spawned[worker].rpc == "thaw"}
            assert not (told | thawers) & self.drive.live

    @invariant()
    def thaw_does_not_lie(self) -> None:
        for call, held in [pair for pair in self.thaws if pair[0].answered]:
            self.thaws.remove((call, held))
            answer = call.answers[0]
            if isinstance(answer, Fault):
                self.told |= answer.code is Code.FREEZE_BROKEN
            elif held is not None:
                assert held or self.told, "success, though they were not held until this thaw was asked"

    @invariant()
    def a_journal_names_what_may_be_frozen(self) -> None:
        named = set() if self.drive.journal is None else set(range(len(self.drive.journal["plan"]["mounts"])))
        assert (self.guest.frozen | self.guest.issued.keys()) <= named

    @invariant()
    def one_attempt_a_mount(self) -> None:
        tried: list[int] = []
        for worker, process in self.processes.items():
            # ADR 0030: one that was killed may be in the kernel, and no thread of it begins another attempt.
            if isinstance(process, Thawer) and worker not in self.drive.killed:
                tried += process.at("idle", "thawing")
        assert len(tried) == len(set(tried))

    @invariant()
    def no_one_works_on_what_a_sound_keeper_thaws(self) -> None:
        sound = [p for p in self._alive() if isinstance(p, Freezer)]
        assert not (sound and [p for p in self._alive() if isinstance(p, Thawer)])

    @invariant()
    def nothing_ticks_when_idle(self) -> None:
        if self.drive.core.thawed and not self.drive.live and not self._waiting():
            assert not self.drive.due

    # -- and in the end

    def teardown(self) -> None:
        self.drive.fork_error = None
        for _ in range(200):
            if self.drive.core.thawed and not self.drive.live:
                break
            self._run_on()
        else:
            raise AssertionError(f"not thawed in the end: {self.drive.status()}")
        self.thawed_means_thawed()
        self.thaw_does_not_lie()
        self.drive.wait(100)
        assert not self._waiting(), f"never answered: {self._waiting()}"
        if self.stopped:
            assert self.drive.of(events.Quit) == [events.Quit(0)]
            return
        assert self.drive.idle()
        told = self.drive.ask("va.fsthaw").answers[0]
        assert not isinstance(told, Fault) or told.code is Code.FREEZE_BROKEN
        self.drive.wait(NEWS_LIMIT)
        assert self.drive.ask("va.fsthaw").value == 0
        assert self.drive.journal is None

    def _run_on(self) -> None:
        """Let all workers go on without further trouble, and time pass where nobody can."""
        moved = False
        for _, process in sorted(self.processes.items()):
            number = process.number
            if number in self.drive.killed:
                process.end(signal.SIGKILL, take_effect=True)
                moved = True
                continue
            moved |= self._go_on(process)
        self._look()
        due = self.drive.timers.nearest()
        if not moved and due is not None:
            self.drive.wait(max(0.0, due - self.drive.now))
            self._look()

    def _go_on(self, process: Process) -> bool:
        """Have the worker do the next thing without trouble, and all that it said be read; return whether it did."""
        actions = [a for a in process.actions() if a[0] not in ("eio", "refuse", "sigterm")]
        moved = bool(actions or process.pipe)
        if actions:
            process.act(actions[0])
        while process.pipe and process.number in self.drive.live:
            process.deliver()
        return moved


CoreMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCore: Any = CoreMachine.TestCase
