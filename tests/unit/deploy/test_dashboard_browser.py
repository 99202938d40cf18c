"""Report and dashboard in a real browser: what they show, what follows while a run grows, what a keyboard reaches, and no error."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from recorded_run import HOSTILE, RecordedRun, scored, spell_letters
from served_dashboard import served

from common import bus as buses
from common.bus.base import SCORED, TICKETS, Burial, Move, rollouts
from common.bus.embedded import EmbeddedServer
from common.codec import encode
from common.pulse import Report
from deploy.dashboard.source import BusSource, RunSource
from deploy.report.write import write_report
from deploy.visit import connected

pytestmark = [
    pytest.mark.redis,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("chromium"), reason="needs a Chromium in PATH (Debian: apt install chromium)"),
]
WIDTHS = (1280, 390)
PATIENCE_MS = 60_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    playwright = pytest.importorskip("playwright.async_api")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=2 * PATIENCE_MS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedRun:
    spell_letters(monkeypatch)
    run = RecordedRun(tmp_path)
    for step in (1, 2):
        await run.step(step)
    run.say("evaluations", {"step": 0, "n": 4, "pass_at_1": 0.25})
    return run


async def opened(browser: Any, address: str, width: int = 1280, **options: Any) -> tuple[Any, list[str]]:
    """A page, and whatever it complains of."""
    page = await browser.new_page(viewport={"width": width, "height": 800}, **options)
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(address)
    return page, errors


async def shows(page: Any, selector: str, text: str) -> None:
    """Waits for it."""
    await page.wait_for_function("([at, text]) => document.querySelector(at)?.textContent.includes(text)", arg=[selector, text])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_report_shows_text_as_text_fits_its_screen_and_has_no_error(
    recorded: RecordedRun, browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    write_report(recorded.config, tmp_path / "out.html")
    page, errors = await opened(browser, (tmp_path / "out.html").as_uri(), width, color_scheme=scheme)
    assert HOSTILE in await page.locator("#text").inner_text()
    assert await page.locator("img").count() == 0
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert await page.locator("#chart-kl polyline").count() >= 2  # one curve for each teacher
    paper, ink = [await page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")]
    assert (sum(channels(paper)) > sum(channels(ink))) == (scheme == "light")
    assert errors == []
    await page.close()


def channels(colour: str) -> list[float]:
    return [float(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")]


async def test_tokens_are_reached_and_told_by_keyboard_alone(recorded: RecordedRun, browser: Any, tmp_path: Path) -> None:
    write_report(recorded.config, tmp_path / "out.html")
    page, errors = await opened(browser, (tmp_path / "out.html").as_uri())
    assert await page.locator("#detail .spoken").inner_text() == "C"  # where the teachers disagree most
    for _ in range(60):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.classList.contains('token')"):
            break
    assert await page.evaluate("document.activeElement.textContent") == "C"
    for key, token in (("ArrowLeft", "B"), ("ArrowLeft", "B"), ("End", "D"), ("ArrowRight", "D"), ("Home", "B")):
        await page.keyboard.press(key)
        assert await page.locator("#detail .spoken").inner_text() == token
    said = await page.locator("#detail").inner_text()
    assert all(text in said for text in ("−0.50", "(1, 0)", "stern would say", "90.5 %"))
    await page.locator("#list button").nth(1).focus()
    await page.keyboard.press("Enter")
    assert await page.locator("#list [aria-pressed=true]").count() == 1
    assert errors == []


async def test_the_list_is_sorted_by_where_the_teacher_disagrees_most_and_can_be_searched(
    recorded: RecordedRun, browser: Any, tmp_path: Path
) -> None:
    write_report(recorded.config, tmp_path / "out.html")
    page, _ = await opened(browser, (tmp_path / "out.html").as_uri())
    assert [seq async for seq in listed(page)] == ["#5", "#3", "#4", "#2"]  # 3, 2, 2 and 1 nats: of equals the first
    await page.select_option("#sort", "step")
    assert [seq async for seq in listed(page)] == ["#4", "#5", "#2", "#3"]
    await page.fill("#search", "3")
    assert [seq async for seq in listed(page)] == ["#3"]


async def listed(page: Any) -> AsyncIterator[str]:
    for text in await page.locator("#list small").all_inner_texts():
        yield text.split(" · ")[1]


async def test_a_page_follows_a_run_that_grows_and_keeps_what_is_being_read(recorded: RecordedRun, browser: Any) -> None:
    async with served(RunSource(recorded.config, period_s=0.1)) as address:
        page, errors = await opened(browser, address)
        await shows(page, "#tiles", "2 of 300")
        await shows(page, "#status", "not running")
        await shows(page, "#dead", "the teacher said NaN")
        await page.locator("#list button").nth(2).click()
        read = await page.locator("#list [aria-pressed=true]").get_attribute("data-name")
        await recorded.step(3, kl=0.5)
        recorded.say("evaluations", {"step": 3, "n": 4, "pass_at_1": 0.75})
        await shows(page, "#tiles", "3 of 300")
        await shows(page, "#chart-accuracy", "75.0 %")
        await page.wait_for_selector('[data-name="3/7"]')
        assert await page.locator("#list [aria-pressed=true]").get_attribute("data-name") == read
        recorded.begin(term=2, step=1)  # resumed from the first step: what came after it is not in the model
        await recorded.step(2)
        await page.wait_for_selector('[data-name="3/7"]', state="detached")
        assert errors == []


async def beat(bus: Any, role: str, at: float, waiting: dict[str, float], **gauges: Any) -> None:
    report = Report(
        role,
        f"{role}-1",
        host=HOSTILE,
        at=at,
        process_s=0.1 * at,
        waiting=waiting,
        counters={"tokens": 100 * at, "samples": at},
        gauges=gauges,
    )
    await bus.beat(f"{role}-1", report.encode(), 60.0)


async def play(bus: Any, stopping: asyncio.Event) -> None:
    """A run whose learner waits for its scorers."""
    began = time.time()
    while not stopping.is_set():
        at = time.time() - began
        await beat(bus, "producer", at, {"tickets": 0.7 * at}, step=2, term=1)
        await beat(bus, "scorer", at, {}, teacher="calm")
        await beat(bus, "learner", at, {"scored": 0.9 * at}, step=2, kl=0.5, accuracy=0.25, accuracy_step=0, published="1:2")
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("directory", [True, False])
async def test_a_run_that_lives_is_a_picture_with_its_bottleneck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Any, directory: bool
) -> None:
    """With its directory at hand, and from the server alone."""
    spell_letters(monkeypatch)
    async with EmbeddedServer.start(tmp_path / "server") as server:
        run, stopping = RecordedRun(tmp_path, url=server.url), asyncio.Event()
        async with buses.connect(run.config, name="all", role="operator") as bus:
            await bus.claim(1, "learner", 60.0, False)
            await bus.admit(1, 0, [(seq, b"ticket") for seq in range(9)])
            leases = await bus.lease([TICKETS], 5, 0)
            await bus.hand_off([Move(lease, rollouts("calm"), b"rollout") for lease in leases[1:]])
            await bus.bury([Burial(leases[0], f"it was poison {HOSTILE}")])
            if not directory:
                [first] = await bus.lease([rollouts("calm")], 1, 0)
                await bus.hand_off([Move(first, SCORED, encode(scored(first.seq, gap=1.5)))])
            source = RunSource(run.config, period_s=0.1) if directory else BusSource("r", lambda: connected(run.config), period_s=0.1)
            async with asyncio.TaskGroup() as tasks, served(source) as address:
                tasks.create_task(play(bus, stopping))
                for width in WIDTHS if directory else WIDTHS[:1]:
                    await look_at_the_living(browser, address, width, backlogs=["0", "4", "4"] if directory else ["1", "3", "4"])
                if not directory:
                    await look_at_what_waits(browser, address)
                stopping.set()


async def look_at_what_waits(browser: Any, address: str) -> None:
    """The token view of a scored answer that waits on the server, by ids: nobody has told the tokenizer."""
    page, errors = await opened(browser, address, WIDTHS[0])
    await shows(page, "#list", "weights of step 1")
    await shows(page, "#text", "#66#67#68")
    await shows(page, "#strip", "Where the teacher disagrees most")
    await shows(page, "#complaint", "tokens are shown as ids")
    assert errors == []
    await page.close()


async def look_at_the_living(browser: Any, address: str, width: int, backlogs: list[str]) -> None:
    page, errors = await opened(browser, address, width)
    await shows(page, "#status", "running")
    await shows(page, "#verdict", "the scorers are the bottleneck")
    await page.wait_for_selector('.held[data-place="scorer"] .mark')
    assert await page.locator(".node.held").count() == 1
    counts = await page.locator(".tube .count").all_text_contents()
    assert sorted(counts) == backlogs
    await shows(page, "#pipeline", "oldest")
    await shows(page, '[data-place="producer"]', "100 tok/s")
    await shows(page, "#workers", "learner-1")
    await shows(page, "#workers", "(1, 2)")
    await shows(page, "#dead", f"it was poison {HOSTILE}")
    await shows(page, "#workers", HOSTILE)
    assert await page.locator("img").count() == 0
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    await page.close()
