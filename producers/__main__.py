"""`python -m producers --config RUN.toml`: one sampling worker."""

import sys

from common.service import run_role
from producers.service import produce

if __name__ == "__main__":
    sys.exit(run_role("producer", produce))
