"""What is done to the server, to the lines between it and the roles, and to clocks; in the manner of chaos_faults."""

from __future__ import annotations

import asyncio
from random import Random

from chaos_faults import POINT_S, Injection, dead, killed, moved_on, recovered
from chaos_world import World

COMMON_CALLS = ("lease", "XREADGROUP", "renew", "beat")
HOP_CALLS = (*COMMON_CALLS, "hand_off", "hand_off", "XREAD")
LEARNER_CALLS = (*COMMON_CALLS, "settle", "publish", "admit", "state", "hold", "reports")
NEWBORN_CALLS = ("claim", "numbers", "reconcile", "readmit", "publish", "admit")
RARE_CALLS = ("release", "retry", "bury", "begin_alone", "discard", "resign", "ask", "answer", "clear")


async def server_killed(world: World, rng: Random) -> bool:
    world.disturb()
    world.server.kill()
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    await world.server.start()
    await moved_on(world)
    return True


async def server_set_back(world: World, rng: Random) -> bool:
    """To a copy of its append-only file that is a second old, or more."""
    copy = world.server.copy()
    await asyncio.sleep(rng.uniform(1.0, 2.5))
    world.disturb()
    world.server.kill()
    world.server.set_back(copy)
    await world.server.start()
    await moved_on(world)
    return True


async def server_empty(world: World, rng: Random) -> bool:
    world.disturb()
    world.server.kill()
    world.server.wipe()
    await world.server.start()
    await moved_on(world)
    return True


async def server_empty_and_learner_dead(world: World, rng: Random) -> bool:
    world.disturb()
    life = world.learner.life
    world.server.kill()
    world.server.wipe()
    life.kill()
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    await world.server.start()
    await dead(world, life)
    await recovered(world, world.learner)
    return True


async def server_hangs(world: World, rng: Random) -> bool:
    world.disturb()
    world.server.stop()
    await asyncio.sleep(world.lease_s * rng.uniform(0.5, 1.5))
    world.server.go_on()
    await moved_on(world)
    return True


_LEAP = """
local root = KEYS[1]
for _, topic in ipairs(redis.call('SMEMBERS', root .. 'topics')) do
  for _, one in ipairs(redis.call('XPENDING', root .. topic, 'workers', '-', '+', 10000)) do
    redis.call('XCLAIM', root .. topic, 'workers', one[2], 0, one[1], 'IDLE', 3600000, 'RETRYCOUNT', one[4], 'JUSTID')
  end
end
redis.call('DEL', root .. 'learner')
for _, name in ipairs(redis.call('SMEMBERS', root .. 'workers')) do redis.call('DEL', root .. 'report:' .. name) end
"""


async def server_clock_leaps(world: World, rng: Random) -> bool:
    """What an hour's leap ahead of the server's clock does: every lease, and every key that lives for a time, is over at once."""
    await world.server.eye.eval(_LEAP, 1, "reflux:{arithmetic}:")
    await moved_on(world)
    return True


# ---- lines and clocks --------------------------------------------------------------------------------------------------------
def cut_off(post: str) -> Injection:
    async def inject(world: World, rng: Random) -> bool:
        line = world.posts[post].line
        world.posts[post].life.undisturbed = False
        line.cut(silently=rng.random() < 0.5)
        await asyncio.sleep(world.lease_s * rng.uniform(0.2, 1.5))
        line.mend()
        return True

    return inject


def slow(post: str) -> Injection:
    async def inject(world: World, rng: Random) -> bool:
        line = world.posts[post].line
        line.delay_s = rng.uniform(0.02, 0.2)
        await asyncio.sleep(rng.uniform(1.0, 3.0))
        line.delay_s = 0.0
        return True

    return inject


def reply_lost(post: str, call: str) -> Injection:
    async def inject(world: World, rng: Random) -> bool:
        line = world.posts[post].line
        before = line.lost[call]
        line.lose[call] = 1
        hit = await world.until(lambda: line.lost[call] > before, POINT_S / 2)
        line.lose[call] = 0
        return hit

    return inject


def replies_lost_in_resuming(call: str) -> Injection:
    """The learner is killed, and a reply to its successor is lost."""

    async def inject(world: World, rng: Random) -> bool:
        line = world.learner.line
        before = line.lost[call]
        line.lose[call] = 1
        hit = await killed("learner")(world, rng)
        line.lose[call] = 0
        return hit and line.lost[call] > before

    return inject


def clock_leaps(post: str) -> Injection:
    """The wall clock of one role is wrong by up to two hours for some seconds, then right again."""

    async def inject(world: World, rng: Random) -> bool:
        life = world.posts[post].life
        life.set_clock(rng.choice((-1, 1)) * rng.uniform(60.0, 7200.0))
        await asyncio.sleep(rng.uniform(1.0, 3.0))
        life.set_clock(0.0)
        return True

    return inject
