"""What is done to roles, by kind. Each fault comes from outside, waits until what it hit has recovered, and says whether it hit at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from chaos_post import Life, Post
from chaos_world import EXIT_DONE, EXIT_REFUSED, World

_READY_S = 120.0
POINT_S = 12.0
_GOODBYE_S = 30.0
REST_STEPS = 3
"""So many steps a learner does before the next fault that costs it its life: dying for ever proves nothing."""

HOP_POINTS = ("leased", "computed", "handed_off")
LEARNER_POINTS = (
    "leased",
    "journaled",
    "torn",
    "settled",
    "stepped",
    "stored",
    "published",
    "admitted",
    "checkpoint_half_written",
    "checkpoint_written",
    "checkpoint_renamed",
)
NEWBORN_POINTS = ("claimed", "stepped", "checkpoint_written", "checkpoint_renamed", "reconciled", "readmitted", "published")
ZOMBIE_POINTS = ("checkpoint_written", "journaled", "stored")


class Unexpected(Exception):
    """A fault was not survived as promised."""


Injection = Callable[[World, Random], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`needs`: the posts, or "server", that nothing else happens to meanwhile. `inject` is False where there was no occasion."""

    kind: str
    needs: frozenset[str]
    inject: Injection


async def recovered(world: World, post: Post) -> None:
    """Until a new life fills the place, and a learner has done some steps."""
    if not await world.until(lambda: post.life.alive and post.life.ready, _READY_S) and not world.done:
        raise Unexpected(f"{post.name} did not come back within {_READY_S:g} s: {post.life.last_line}")
    if post is world.learner:
        await moved_on(world)


async def moved_on(world: World) -> None:
    """Until the run has done some more steps."""
    reached = world.step
    if not await world.until(lambda: world.step >= reached + REST_STEPS, _READY_S) and not world.done:
        raise Unexpected(f"no progress within {_READY_S:g} s at step {reached}")


async def dead(world: World, life: Life) -> None:
    await world.until(lambda: not life.alive, _GOODBYE_S)


# ---- deaths ------------------------------------------------------------------------------------------------------------------
def killed(post: str) -> Injection:
    async def inject(world: World, rng: Random) -> bool:
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        life = world.posts[post].life
        life.kill()
        await dead(world, life)
        await recovered(world, world.posts[post])
        return True

    return inject


def killed_twice(post: str) -> Injection:
    """Again while the successor starts."""

    async def inject(world: World, rng: Random) -> bool:
        place = world.posts[post]
        before = place.life
        before.kill()
        await world.until(lambda: place.life is not before, _GOODBYE_S)
        await asyncio.sleep(rng.uniform(0.1, world.cold.get(place.role, 5.0)))
        place.life.kill()
        await dead(world, place.life)
        await recovered(world, place)
        return True

    return inject


def killed_at(post: str, point: str) -> Injection:
    async def inject(world: World, rng: Random) -> bool:
        place = world.posts[post]
        life = place.life
        if not await life.order("kill", point, POINT_S):
            return False
        await dead(world, life)
        await recovered(world, place)
        return True

    return inject


def newborn_killed_at(point: str) -> Injection:
    """The learner is killed, and its successor while it resumes."""

    async def inject(world: World, rng: Random) -> bool:
        place, before = world.learner, world.learner.life
        before.kill()
        await world.until(lambda: place.life is not before, _GOODBYE_S)
        life = place.life
        hit = await life.order("kill", point, _READY_S / 4)
        if hit:
            await dead(world, life)
        await recovered(world, place)
        return hit

    return inject


# ---- sleep, rivals, zombies --------------------------------------------------------------------------------------------------
def frozen(post: str, point: str = "") -> Injection:
    """SIGSTOP past its lease, then SIGCONT; at a point of the work where one is named."""

    async def inject(world: World, rng: Random) -> bool:
        place = world.posts[post]
        life = place.life
        if point and not await life.order("stop", point, POINT_S):
            return False
        if not point:
            life.stop()
        await asyncio.sleep(world.lease_s * rng.uniform(1.3, 1.8))
        life.go_on()
        await recovered(world, place)
        return True

    return inject


async def second_learner(world: World, rng: Random) -> bool:
    """Refused while the first one's lease lives."""
    first, second = world.learner.life, world.learner.start()
    await world.until(lambda: not second.alive, _READY_S)
    if second.alive or second.process.returncode != EXIT_REFUSED or "--take-over" not in second.last_line:
        second.kill()
        if world.done:
            return False
        raise Unexpected(f"a second learner was not refused ({second.process.returncode}): {second.last_line}")
    return first.alive


async def taken_over(world: World, rng: Random) -> bool:
    """The first learner stops by itself, with a sentence; unless it has finished the run before its successor was there."""
    old = _replace(world, "taken over")
    await _ends_superseded(world, old)
    await recovered(world, world.learner)
    return old.process.returncode == EXIT_REFUSED


def zombie(point: str) -> Injection:
    """Stopped at a point, taken over, and woken when its successor works."""

    async def inject(world: World, rng: Random) -> bool:
        old = world.learner.life
        if not await old.order("stop", point, POINT_S):
            return False
        _replace(world, "taken over while it slept")
        await recovered(world, world.learner)
        old.go_on()
        await _ends_superseded(world, old)
        return True

    return inject


def _replace(world: World, because: str) -> Life:
    old = world.learner.life
    old.replaced = True
    world.learner.begin("--take-over", because=because)
    return old


async def _ends_superseded(world: World, old: Life) -> None:
    await world.until(lambda: not old.alive, _READY_S)
    if (
        not world.done
        and old.process.poll() != EXIT_DONE
        and (old.process.poll() != EXIT_REFUSED or "has taken over this run" not in old.last_line)
    ):
        raise Unexpected(f"a learner that was taken over ended with {old.process.poll()}: {old.last_line}")
