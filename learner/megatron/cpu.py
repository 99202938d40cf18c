"""The seam that lets Megatron-core run where there is no CUDA.

Guarantees: where CUDA is available nothing happens. Elsewhere an import hook rewrites, while they are imported, the
Megatron modules named in `_MODULES`, and only those: torch itself, and every other package, stay untouched. The hook has
to be in place before Megatron is first imported; importing `learner.megatron` sees to that.

What is rewritten, and why:
- the device name "cuda" and `torch.cuda.current_device()`: scratch tensors (token counts, norms, loss scales, gradient
  buffers, what stages and tensor-parallel ranks receive) are created on a device that is spelled out;
- `torch.cuda.synchronize()`: after a stage has received;
- "torch.cuda.FloatTensor" and its siblings: the optimizer and gradient clipping tell dtypes apart by the *name* of a
  tensor's type, which carries the device;
- `x.cuda()`: optimizer state is moved to the device before ranks gather it for a checkpoint, and the embedding before two stages share it;
- `torch.cuda.manual_seed`, `torch.cuda.get_rng_state` and the two functions in `_BODIES`: Megatron forks the device's
  random stream for parallel dropout and replays it when it recomputes activations; here the CPU's stream is the device's;
- `torch.cuda.Stream` and `_maybe_dtoh_and_synchronize`: the counts that expert-parallel ranks exchange are copied to the host on a stream
  of their own; here they are there already;
- `torch.compile` in Megatron's `jit`: decorators of fused kernels, which only configurations for CUDA call, load the whole
  compiler at import, 2 s of CPU in every process.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

import torch

_MODULES = frozenset(
    f"megatron.core.{name}"
    for name in (
        "distributed.param_and_grad_buffer",
        "jit",
        "models.common.language_module.language_module",
        "optimizer.clip_grads",
        "optimizer.distrib_optimizer",
        "optimizer.optimizer",
        "pipeline_parallel.p2p_communication",
        "pipeline_parallel.schedules",
        "tensor_parallel.layers",
        "tensor_parallel.mappings",
        "tensor_parallel.random",
        "transformer.moe.token_dispatcher",
        "utils",
    )
)
_LITERALS = {"cuda": "cpu"} | {f"torch.cuda.{kind}Tensor": f"torch.{kind}Tensor" for kind in ("Float", "Half", "BFloat16")}
_CALLS = {"torch.cuda.current_device": "'cpu'", "torch.cuda.synchronize": "None", "torch.cuda.Stream": "None"}
_CALLEES = {"torch.cuda.manual_seed": "torch.manual_seed", "torch.cuda.get_rng_state": "torch.get_rng_state"}
_VALUES = {"torch.compile": "noop_decorator"}
_BODIES = {
    "_get_cuda_rng_state": "return torch.get_rng_state()",
    "_set_cuda_rng_state": "torch.set_rng_state(new_state)",
    "_maybe_dtoh_and_synchronize": "self.input_splits, self.output_splits = (list(map(int, sizes)) "
    "for sizes in (self.input_splits, self.output_splits)); return tokens_per_expert",
}


def install_import_hook() -> None:
    """Make Megatron importable without CUDA; repeated calls change nothing."""
    if torch.cuda.is_available() or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    assert not _MODULES & sys.modules.keys(), "Megatron was imported before learner.megatron"
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile the rewritten source, past the bytecode cache: that one belongs to machines with CUDA."""
        path = self.get_filename(fullname)
        tree = _Rewrite().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Rewrite(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and node.value in _LITERALS:
            return ast.copy_location(ast.Constant(_LITERALS[node.value]), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        value = _VALUES.get(_dotted(node))
        return node if value is None else ast.copy_location(_expression(value), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node.name in _BODIES:
            node.body = ast.parse(f"def f():\n    {_BODIES[node.name]}").body[0].body  # type: ignore[attr-defined]
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        callee = _dotted(node.func)
        if callee in _CALLS:
            return ast.copy_location(_expression(_CALLS[callee]), node)
        if callee in _CALLEES:
            node.func = ast.copy_location(_expression(_CALLEES[callee]), node.func)
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            node.func.attr = "cpu"
        return node


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of attributes; of anything else an empty string."""
    if isinstance(node, ast.Attribute) and (value := _dotted(node.value)):
        return f"{value}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body
