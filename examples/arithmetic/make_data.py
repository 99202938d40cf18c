"""Writes sft.jsonl, heldout.jsonl and train.jsonl: the same bytes every time, and no prompt twice in all three.

The student's own examples are few and easy: no number in them has an eight or a nine, where the task has all of 10..99.
"""

import argparse
from pathlib import Path
from random import Random

from task import HERE, NUMBERS, draw_fresh_prompts, question, work_out, write_jsonl

SEED = 20
SFT_EXAMPLES = 1_000
SFT_NUMBERS = [number for number in NUMBERS if not set("89") & set(str(number))]
HELD_OUT_PROMPTS = 1_024
TRAINING_PROMPTS = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets the three files")
    out = parser.parse_args().out
    rng = Random(SEED)
    sft = draw_fresh_prompts(rng, SFT_EXAMPLES, numbers=SFT_NUMBERS)
    others = draw_fresh_prompts(rng, HELD_OUT_PROMPTS + TRAINING_PROMPTS, taken=set(sft))
    write_jsonl(out / "sft.jsonl", ({"prompt": prompt, "response": work_out(prompt)} for prompt in sft))
    write_jsonl(out / "heldout.jsonl", map(question, others[:HELD_OUT_PROMPTS]))
    write_jsonl(out / "train.jsonl", map(question, others[HELD_OUT_PROMPTS:]))


if __name__ == "__main__":
    main()
