"""A run of one learner after another, two producers and two scorers, all of them real code or real scripts, in a test's hands.

The truth of a learner is the list of samples that its trainer was trained on; the truth of the bus is the model beside it.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from pathlib import Path

from learner_fakes import FakeTrainer
from protocol_process import Killed, Process, VirtualLoop
from protocol_workers import Hand, Life, Store

from common.config import parse_config
from common.errors import Superseded
from learner import journal
from learner.directory import RunDirectory
from learner.resume import resume

BATCH, STEPS = 2, 3
PATIENCE = 500
_SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


class World:
    """The run. Everything here is synchronous: it lets the loop run until all processes wait."""

    def __init__(self, loop: VirtualLoop, medium, **learner) -> None:
        self.loop, self.medium, self.store = loop, medium, Store()
        self.scratch = Path(tempfile.mkdtemp(prefix="reflux-protocol-", dir=_SCRATCH))
        (self.scratch / "config.json").write_text('{"model_type": "fake"}')
        values = {
            "run": {"name": "run", "dir": str(self.scratch)},
            "model": {"student": str(self.scratch)},
            "teachers": {"t": {"path": "t", "top_k": 0}},
            "data": {"prompts": "p"},
            "loss": {"kind": "sampled_reverse_kl"},
            "learner": {"batch_size": BATCH, "steps": STEPS, "max_staleness": 1, "checkpoint_every": 2, **learner},
            "evaluation": {"prompts": 0},
            "bus": {"lease_s": 30.0},
        }
        self.config = parse_config(values)
        self.directory = RunDirectory(self.config.directory)
        self.lives: list[Life] = []
        self.hands: list[Hand] = []
        self.gone: list[str] = []
        self.snapshots = []
        self._born = 0
        for kind in ("producer", "producer", "scorer", "scorer"):
            self.hire(kind)

    def run(self, work):
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        self.run(self.loop.settle())

    # ---- processes ------------------------------------------------------------------------------------------------------
    def hire(self, kind: str) -> None:
        self._born += 1
        self.hands.append(Hand(self, kind, self._born))

    @property
    def learners(self) -> list[Life]:
        """Those that live."""
        return [life for life in self.lives if not life.over]

    def start_learner(self) -> None:
        self._born += 1

        async def start() -> Life:
            return Life(self, self._born)

        self.lives.append(self.run(start()))
        self.settle()

    def kill(self, process: Process) -> None:
        process.kill()
        self.settle()
        if isinstance(process, Hand):
            self.gone.append(process.name)
            self.hands.remove(process)
            self.hire(process.kind)

    def let(self, process: Process, index: int = 0, *, lose: bool = False) -> None:
        """Opens one gate of the process."""
        if process.gates:
            process.open(index, lose=lose)
            self.settle()

    def ask(self, hand: Hand, *works, lose: bool = False) -> None:
        """The worker does these, one after the other; with `lose` the last one's reply is lost, and the call is left waiting."""
        for number, work in enumerate(works):
            hand.begin(work())
            self.settle()
            while hand.gates and not hand.gates[-1].what.endswith("again"):
                self.let(hand, -1, lose=lose and number == len(works) - 1)

    def until(self, condition, life: Life | None = None) -> None:
        """The learner goes on, gate by gate, until `condition`; the others do not."""
        for turn in range(PATIENCE):
            if condition():
                return
            one = life or self.learners[-1]
            self.let(one, turn)
            if turn % 20 == 19:
                self.pass_time()
        raise AssertionError("it does not come to that")

    def waits_at(self, what: str, life: Life | None = None):
        """A condition: a learner stands before this call."""
        return lambda: any(gate.what == what for one in ([life] if life else self.learners) for gate in one.gates)

    def everybody_works(self) -> None:
        for hand in self.hands:
            self.ask(hand, lambda hand=hand: hand.take(10), hand.follow, hand.hand_off)

    def pass_time(self, seconds: float = 1.0) -> None:
        self.loop.now += seconds
        self.settle()

    # ---- the server and the disk --------------------------------------------------------------------------------------------
    def keep_snapshot(self) -> None:
        self.snapshots = [*self.snapshots[-9:], self.run(self.medium.snapshot())]

    def tear_journal(self) -> bool:
        """The last record is lost."""
        terms = journal.terms(self.directory.journal)
        segments = sorted(journal.term_directory(self.directory.journal, terms[-1]).glob("*.rfx")) if terms else []
        frames = segments[-1].read_bytes() if segments else b""
        begin = end = 0
        while end < len(frames):
            begin, end = end, end + 8 + struct.unpack_from("<I", frames, end)[0]
        if frames:
            segments[-1].write_bytes(frames[:begin])
        return bool(frames)

    # ---- the truth -----------------------------------------------------------------------------------------------------------
    def check(self) -> None:
        self.check_processes()
        self.run(self.medium.compare())

    def check_processes(self) -> None:
        for process in [*self.lives, *self.hands]:
            for error in process.failures():
                if not isinstance(error, Superseded) and not (isinstance(error, Killed) and not process.alive):
                    raise error
        for life in self.lives:
            trained = life.trainer.trained
            assert len(set(trained)) == len(trained), f"a sample is twice in the model of {life.name}: {trained}"
            assert max(life.trainer.lags, default=0) <= self.config.learner.max_staleness

    def finish(self) -> None:
        """No more faults: the run must come to its end, with everything in its place."""
        for life in self.learners:
            life.fuse = 0
        for _ in range(PATIENCE):
            self.end_all_leases()
            self.turn()
            self.check_processes()
            if self.lives and self.lives[-1].finished and not self.learners:
                break
        else:
            waiting = {p.name: [gate.what for gate in p.gates] for p in [*self.learners, *self.hands]}
            raise AssertionError(
                f"the run does not end: {self.medium.model}, {waiting}, {[(p.trainer.steps, p.failures()) for p in self.lives]}"
            )
        self.check()
        self._check_the_end(self.lives[-1])

    def turn(self) -> None:
        """Every call that waits goes through, every worker works once, half a second passes."""
        if not self.learners and not (self.lives and self.lives[-1].finished):
            self.start_learner()
        for process in [*self.learners, *self.hands]:
            for gate in list(process.gates):
                if not gate.future.done():
                    gate.future.set_result(False)
            self.settle()
        self.everybody_works()
        self.pass_time(0.5)

    def end_all_leases(self) -> None:
        """Of those that are gone, and of the workers: whoever still works on them comes too late."""
        for name in [*self.gone, *(process.name for process in [*self.hands, *self.lives] if process not in self.learners)]:
            self.run(self.medium.end_leases(name))

    def _check_the_end(self, life: Life) -> None:
        trained = life.trainer.trained
        assert len(trained) == STEPS * BATCH
        again = FakeTrainer()
        resume(self.config, self.directory, again, 10_000)
        assert again.trained == trained, "what a resume would load is another line"
        if self.medium.reconciled_in == self.medium.lives:  # what the server lost after the end is nobody's business
            self._check_places(trained)

    def _check_places(self, trained: list[int]) -> None:
        model = self.medium.model
        assert sorted([*trained, *model.live, *model.dead]) == list(range(model.cursor)), "every seq is in one place"
        assert (model.missing, model.applied) == (0, len(trained))
        ledger = json.loads(self.directory.result.read_text())["ledger"]
        assert ledger["admitted"] == model.cursor
        assert ledger["applied"] == len(trained)

    def close(self) -> None:
        for process in [*self.lives, *self.hands]:
            process.kill()
        self.run(self.loop.end())
        self.run(self.medium.aclose())
        shutil.rmtree(self.scratch, ignore_errors=True)
