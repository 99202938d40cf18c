"""The recipe's prompts from public data sets: DAPO-Math-17k for training, MATH-500 held out, as JSONL with `messages` and `answer`.

usage: python prepare_data.py DAPO MATH500 OUT   - two paths that `datasets.load_dataset` knows (a name on the hub or a local directory)
A training question that is also a held-out one is left out; DAPO's many copies of a question become one.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

INSTRUCTION = "Solve the problem step by step and put the final answer into \\boxed{}."
_DAPO_FRAME = re.compile(r"^Solve the following math problem step by step\..*?\n\n(.*?)\n\nRemember to put your answer.*$", re.DOTALL)

Row = Mapping[str, Any]


def question_of(row: Row) -> str:
    """The bare problem: MATH-500 has it as `problem`, DAPO inside the frame of its own instruction."""
    if "problem" in row:
        return str(row["problem"]).strip()
    text = str(row["prompt"][0]["content"])
    framed = _DAPO_FRAME.match(text)
    return (framed[1] if framed else text).strip()


def answer_of(row: Row) -> str:
    """The reference answer, as the verifier `math` compares it."""
    return str(row["answer"] if "answer" in row else row["reward_model"]["ground_truth"]).strip()


def lines(rows: Iterable[Row], taken: set[str]) -> Iterator[str]:
    """One line per question that is not in `taken`, which grows."""
    for row in rows:
        question = question_of(row)
        key = " ".join(question.split())
        if key in taken:
            continue
        taken.add(key)
        yield json.dumps({"messages": [{"role": "user", "content": f"{question}\n\n{INSTRUCTION}"}], "answer": answer_of(row)})


def main() -> None:
    from datasets import load_dataset

    if len(sys.argv) != 4:
        sys.exit(__doc__)
    dapo, math500, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for name, path, split in (("math500", math500, "test"), ("dapo-math-17k", dapo, "train")):
        text = "\n".join(lines(load_dataset(path, split=split), taken)) + "\n"
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {text.count(chr(10))} questions")


if __name__ == "__main__":
    main()
