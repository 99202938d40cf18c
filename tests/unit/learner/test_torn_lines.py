"""A line that a crash cut off is lost; the one after it is not."""

from learner_fakes import FakeQuestions

from common.config.sections import EvaluationSection
from common.pulse import Pulse
from learner.directory import RunDirectory
from learner.evaluation import Evaluation, Evaluator
from learner.metrics import Metrics, read_metrics, write_tensorboard

TORN = '{"step": 4, "n": 1, "loss": 0.'


def evaluator(directory):
    return Evaluator(bus=None, pulse=Pulse(), directory=directory, questions=FakeQuestions(4), section=EvaluationSection(), steps=8, term=2)


async def test_an_evaluation_after_a_torn_line_is_known_to_the_next_life(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.evaluations.write_text(TORN)
    directory.open_evaluation.write_bytes(b"")
    result = Evaluation(term=2, step=8, n=4, correct=2, asked=4, truncated=0, seconds=0.1)
    await evaluator(directory)._keep(result)
    successor = evaluator(directory)
    assert successor.load(8) is None
    assert successor.done == {8: result}
    write_tensorboard(directory)


def test_a_step_after_a_torn_line_is_on_record(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.metrics.write_text('{"step": 3, "loss": 0.1}\n' + TORN)
    metrics = Metrics(directory=directory, pulse=Pulse())
    metrics._append({"step": 4, "loss": 0.2})
    assert [line["step"] for line in read_metrics(directory.metrics)] == [3, 4]
    before = directory.metrics.read_bytes()
    Metrics(directory=directory, pulse=Pulse())
    assert directory.metrics.read_bytes() == before
