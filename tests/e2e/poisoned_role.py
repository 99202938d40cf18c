"""A producer or scorer in a process whose mathematics dies of, or hangs on, one sample: `poisoned_role.py ROLE HOW SEQ CONFIG`."""

import asyncio
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.config import load_config
from common.messages import Completion, Span, TeacherScore, Version
from common.service import run_service
from common.weights import open_store
from producers.follower import WeightsFollower
from producers.service import Producer
from scorers.service import Scorer

ROLE, HOW, SEQ = sys.argv[1], sys.argv[2], int(sys.argv[3])


def compute(seq: int) -> None:
    """What one thread does for all samples, one after the other."""
    time.sleep(0.002)
    if seq == SEQ:
        if HOW == "hang":
            time.sleep(1e6)
        os.kill(os.getpid(), signal.SIGKILL)


class Mathematics:
    """Engine and teacher."""

    version, wanted, digest = Version(1, 0), 64, "d"

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)

    async def generate(self, ticket):
        await asyncio.get_running_loop().run_in_executor(self.thread, compute, ticket.seq)
        return Completion(np.array([1], np.int32), np.array([-0.5], np.float32), (Span(1, 0, 1, True),), "stop")

    async def score(self, rollouts):
        for rollout in rollouts:
            await asyncio.get_running_loop().run_in_executor(self.thread, compute, rollout.ticket.seq)
        return [TeacherScore("t", self.digest, np.array([-0.4], np.float32)) for _ in rollouts]


async def body(worker):
    maths = Mathematics()
    if ROLE == "producer":
        store = open_store(worker.config)
        follower = WeightsFollower(bus=worker.bus, store=store, engine=maths, pulse=worker.pulse, poll_s=0.1)
        await Producer(worker=worker, engine=maths, follower=follower, judge=None).run()
    else:
        await Scorer(worker=worker, teacher=maths, name="t", examine=lambda: asyncio.sleep(0, "")).run()


sys.exit(run_service(ROLE, body, lambda: load_config(Path(sys.argv[4]), [])))
