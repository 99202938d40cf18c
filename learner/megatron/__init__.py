"""The one training path: Megatron-core, on a laptop's CPU (gloo) and on a cluster (NCCL).

Guarantee: whoever imports anything below this package gets a Megatron that runs on the devices this machine has.
"""

from __future__ import annotations

from learner.megatron.cpu import install_import_hook
from learner.megatron.quiet import quiet

install_import_hook()
with quiet():
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer  # noqa: F401
