"""P10 in the source: nothing but data is read from files, the bus and HTTP; no text becomes a program or a command line."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "producers", "scorers", "learner", "deploy")
MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "code", "codeop"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "numpy.load",
    "np.load",
}
ALLOWED = {"learner/megatron/cpu.py compile": "rewrites megatron-core's own source on import where CUDA is missing; reads no data"}


def unsafe(source: str) -> Iterator[str]:
    """What may run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (name for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            safe = {"torch.load": given.get("weights_only") == "True", "np.load": given.get("allow_pickle") == "False"}
            if name in CALLS and not safe.get(name):
                yield name
            if given.get("shell") == "True" or given.get("trust_remote_code", "False") != "False" or given.get("allow_pickle") == "True":
                yield f"{name} with shell, remote code or pickles"
            if name.endswith(".from_pretrained") and "trust_remote_code" not in given and "Tokenizer" in name:
                yield f"{name} without trust_remote_code=False"


def test_nothing_that_is_read_can_run() -> None:
    """Megatron's checkpoints use pickles inside; their digests are checked first (docs/security.md)."""
    found = {
        f"{path.relative_to(ROOT)} {what}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for what in unsafe(path.read_text())
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from yaml import load", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "eval(x)", "exec(x)",
        "subprocess.run(x, shell=True)", "AutoTokenizer.from_pretrained(x)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_what_may_run_what_it_reads_is_recognised(line: str) -> None:
    assert list(unsafe(line))


@pytest.mark.parametrize(
    "line", ["import json", "model.eval()", "client.eval(SCRIPT, 1, key)", "re.compile(x)", "torch.load(f, weights_only=True)"]
)
def test_what_only_looks_so_is_not(line: str) -> None:
    assert not list(unsafe(line))
