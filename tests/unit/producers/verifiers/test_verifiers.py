from __future__ import annotations

import gc
import logging
import math
import sys
import threading
import types
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.sections import EvaluationSection
from common.errors import ConfigError
from producers.verifiers import Verifier, verifier_for
from producers.verifiers.mathematics import MathVerifier

STRANGE = [
    "",
    " ",
    "\x00",
    "\ud800",
    "$" * 99,
    "\\boxed{" * 50,
    "{" * 5000,
    "1/0",
    "\\frac{1}{0}",
    "∞",
    "9" * 5000,
    "\\sqrt{",
    "a\nb\r\n\n",
]


def verifier(name: str, **values: str) -> Verifier:
    return verifier_for(EvaluationSection(verifier=name, **values))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mathematics() -> Iterator[MathVerifier]:
    built = MathVerifier(time_limit_s=2)
    yield built
    built.close()


def test_exact_compares_the_whole_response() -> None:
    exact = verifier("exact")
    assert exact(" 42\n", "42")
    assert not exact("it is 42", "42")


def test_regex_compares_the_first_group_of_the_last_match() -> None:
    regex = verifier("regex")
    assert regex("1+2=3\n3+4=7", "7")
    assert regex("so -1.5 ", "-1.5")
    assert not regex("7 of them", "7")
    assert not regex("", "")
    labelled = verifier("regex", pattern=r"answer: (\w+)|(x)")
    assert labelled("answer: 3, no, answer: 4.", "4")
    assert not labelled("answer: 3, no, answer: 4.", "3")
    assert not labelled("x", "x")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"verifier": "fuzzy"}, "write exact, regex, math or python"),
        ({"verifier": "regex", "pattern": "("}, "is no regular expression"),
        ({"verifier": "regex", "pattern": "a+"}, "has no group"),
        ({"verifier": "python:nowhere_at_all:f"}, "evaluation.verifier = 'python:nowhere_at_all:f': there is no module"),
    ],
)
def test_a_wrong_setting_is_refused(values: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        verifier_for(EvaluationSection(**values))  # type: ignore[arg-type]


def test_math_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install math-verify"):
        verifier("math")


def test_a_function_of_the_users_own_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_verifier")
    module.close = lambda response, answer: math.isclose(float(response), float(answer), rel_tol=0.1) or None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_verifier", module)
    close = verifier("python:their_verifier:close")
    assert close("10.5", "10") is True
    assert close("20", "10") is False
    with pytest.raises(ValueError, match="could not convert"):
        close("ten", "10")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is $\\boxed{\\frac{1}{2}}$.", "0.5"),
        ("so x = $\\frac{2}{4}$", "\\frac{1}{2}"),
        ("$x^2 + 2x + 1$", "$(x+1)^2$"),
        ("It is 42.", "42"),
        ("(A)", "(A)"),
    ],
)
def test_math_accepts_equal_values_in_other_clothes(mathematics: MathVerifier, response: str, answer: str) -> None:
    assert mathematics(response, answer)


@pytest.mark.parametrize(("response", "answer"), [("It is 41.", "42"), ("$\\boxed{3}$, not 4", "4"), ("no idea", "4")])
def test_math_refuses_other_values(mathematics: MathVerifier, response: str, answer: str) -> None:
    assert not mathematics(response, answer)


def test_math_works_off_the_main_thread_and_from_several_at_once(mathematics: MathVerifier) -> None:
    verdicts: list[bool] = []
    threads = [
        threading.Thread(target=lambda n=n: verdicts.append(mathematics(f"it is ${n}/2$", str(n / 2)) and not mathematics("0", "1")))
        for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 4


def test_an_answer_that_takes_the_judge_down_is_wrong_and_said(mathematics: MathVerifier, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert not mathematics("$9^{9^{9^{9}}}$", "x + 1")
    assert "gave up on an answer" in caplog.text
    assert mathematics("$1/2$", "0.5")


def test_a_forgotten_judge_ends() -> None:
    forgotten = MathVerifier()
    forgotten("1", "2")
    judge = forgotten._judge
    assert judge is not None
    del forgotten
    gc.collect()
    assert judge.poll() is not None


@pytest.mark.parametrize("text", STRANGE)
def test_strange_text_is_judged_not_raised(mathematics: MathVerifier, text: str) -> None:
    for judge in (verifier("exact"), verifier("regex"), mathematics):
        assert judge(text, "no such thing") is False
        assert isinstance(judge("4", text), bool)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=20))
def test_the_text_verifiers_never_raise(response: str, answer: str) -> None:
    for judge in (verifier("exact"), verifier("regex")):
        assert isinstance(judge(response, answer), bool)
