"""The one training path: Megatron-core, on a laptop's CPU (gloo) and on a cluster (NCCL).

Guarantee: whoever imports anything below this package gets a Megatron that runs on the devices this machine has.
"""

from __future__ import annotations

import warnings

from learner.megatron.cpu import install_import_hook

install_import_hook()
with warnings.catch_warnings():  # without Transformer Engine and Apex, each module that could use them says so
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex)", category=UserWarning)
    import megatron.core.models.gpt
    import megatron.core.optimizer  # noqa: F401
