"""The learner's own program, whose loss and whose weight store can be made slow: while a file of that name lies in REFLUX_SLOW."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from common.config.sections import LossSection
from common.weights.directory import DirectoryStore
from learner.__main__ import main
from learner.losses import loss_for
from learner.training import LossInputs, LossOutput

_SWITCHES = Path(os.environ["REFLUX_SLOW"])
_default = loss_for(LossSection())
_put = DirectoryStore._put


def loss(inputs: LossInputs) -> LossOutput:
    """The default loss; 0.6 s for every micro-batch while training is to be slow."""
    if (_SWITCHES / "training").exists():
        time.sleep(0.6)
    return _default(inputs)


def _slow_put(store: DirectoryStore, *arguments: Any) -> Any:
    if (_SWITCHES / "publishing").exists():
        time.sleep(2.0)
    return _put(store, *arguments)


if __name__ == "__main__":
    DirectoryStore._put = _slow_put  # type: ignore[method-assign]
    sys.exit(main())
