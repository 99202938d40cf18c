"""The prompts of a run: read, checked and tokenised once at the start; after that tickets are plain arithmetic on `seq`."""

from common.config import RunConfig
from learner.prompts.source import EvalPrompts, Place, PromptSource

__all__ = ["EvalPrompts", "Place", "PromptSource", "load_eval_prompts", "load_prompts"]


def load_prompts(config: RunConfig) -> PromptSource:
    """The training prompts. Raises ConfigError: one sentence that names the file and the line."""
    from learner.prompts.prompt import prepare_prompts
    from learner.prompts.rows import read_rows
    from learner.prompts.student import Student

    student = Student(config.model.student)
    room = student.room(config.data.max_prompt_tokens, config.sampling.max_new_tokens, "sampling.max_new_tokens")
    rows, fingerprint = read_rows(config.data.prompts, "data.prompts")
    return PromptSource(prepare_prompts(rows, student, room, config.teachers), fingerprint, config, student.stop_ids(config))


def load_eval_prompts(config: RunConfig) -> EvalPrompts:
    """The first `evaluation.prompts` of the held-out prompts; empty where evaluation is off. Raises ConfigError."""
    from learner.prompts.prompt import check_answers, prepare_prompts
    from learner.prompts.rows import read_rows
    from learner.prompts.student import Student

    student = Student(config.model.student)
    if config.data.eval_prompts is None or not config.evaluation.prompts:
        return EvalPrompts((), "", config, ())
    new_tokens = config.evaluation.max_new_tokens or config.sampling.max_new_tokens
    room = student.room(config.data.max_prompt_tokens, new_tokens, "evaluation.max_new_tokens")
    rows, fingerprint = read_rows(config.data.eval_prompts, "data.eval_prompts")
    rows = rows[: config.evaluation.prompts]
    check_answers(rows)
    return EvalPrompts(prepare_prompts(rows, student, room, None), fingerprint, config, student.stop_ids(config))
