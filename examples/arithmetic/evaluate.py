"""Judges any model of the task: pass@1 at temperature 1 on the held-out prompts, by transformers' own forward pass.

Prints one JSON line: {"pass_at_1": …, "n": …}.
"""

import argparse
import json
from pathlib import Path

from language_model import load, load_tokenizer, pass_at_1, run_alone_on_one_thread
from task import HERE, read_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, default=HERE / "heldout.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run_alone_on_one_thread()
    questions = read_jsonl(arguments.prompts)
    right = pass_at_1(load(arguments.model), load_tokenizer(arguments.model), questions, seed=arguments.seed)
    print(json.dumps({"pass_at_1": round(right, 4), "n": len(questions)}))


if __name__ == "__main__":
    main()
