"""TRL's DistillationTrainer on the same models, prompts, batch, optimizer and sample count; runs in an environment of its own.

Prints one JSON line: samples, wall and CPU seconds of the training loop (start-up, saving and evaluation excluded).
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer


class Clock(TrainerCallback):
    """Times the loop after its first `warm` steps."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.begun: tuple[float, float] | None = None
        self.spent = (0.0, 0.0)

    def on_step_end(self, args, state, control, **kwargs):
        now = (time.perf_counter(), time.process_time())
        if state.global_step == self.warm:
            self.begun = now
        elif self.begun is not None:
            self.spent = (now[0] - self.begun[0], now[1] - self.begun[1])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("student", "teacher", "prompts", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name, default in (
        ("steps", 200),
        ("batch", 64),
        ("micro-batch", 64),
        ("threads", 2),
        ("seed", 1),
        ("max-new-tokens", 56),
        ("warm", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("lr", 1e-3), ("beta1", 0.9), ("beta2", 0.98)):
        parser.add_argument(f"--{name}", type=float, default=default)
    return parser.parse_args()


def settings(given: argparse.Namespace) -> DistillationConfig:
    return DistillationConfig(
        output_dir=str(given.out),
        per_device_train_batch_size=given.micro_batch,
        gradient_accumulation_steps=given.batch // given.micro_batch,
        max_steps=given.steps,
        learning_rate=given.lr,
        lr_scheduler_type="constant",
        adam_beta1=given.beta1,
        adam_beta2=given.beta2,
        max_grad_norm=1.0,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        beta=1.0,  # reverse KL
        temperature=1.0,
        max_completion_length=given.max_new_tokens,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=given.seed,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
    )


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.student, padding_side="left")
    student = AutoModelForCausalLM.from_pretrained(given.student, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(given.teacher, dtype=torch.float32)
    rows = [{"prompt": json.loads(line)["prompt"]} for line in given.prompts.read_text().splitlines()]
    clock = Clock(given.warm)
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=settings(given),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    samples = (given.steps - given.warm) * given.batch
    wall, cpu = clock.spent
    trainer.model.save_pretrained(given.out / "model")
    tokenizer.save_pretrained(given.out / "model")
    print(json.dumps({"samples": samples, "wall_s": wall, "cpu_s": cpu, "threads": given.threads, "micro_batch": given.micro_batch}))


if __name__ == "__main__":
    main()
