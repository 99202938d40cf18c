"""What is checked before a run: at every start what costs next to nothing, by `reflux preflight` all that can be asked."""

from deploy.preflight.start import preflight

__all__ = ["preflight"]
