"""One TOML file, one frozen RunConfig; validated here once, nobody below checks again."""

from common.config.load import load_config, parse_config
from common.config.run import RunConfig

__all__ = ["RunConfig", "load_config", "parse_config"]
