"""What is checked before a run: at every start what takes seconds, by `reflux preflight` all that can be asked."""

from deploy.preflight.asked import ask_servers
from deploy.preflight.start import preflight

__all__ = ["ask_servers", "preflight"]
