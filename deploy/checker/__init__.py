"""`reflux audit`: a checker that shares no code with the bus or the learner, only their files, keys and promises (an import contract)."""

from deploy.checker.audit import audit
from deploy.checker.report import Report
from deploy.checker.server import Look, NoAnswer, look_at

__all__ = ["Look", "NoAnswer", "Report", "audit", "look_at"]
