"""The unprivileged side: consumes KNIME's jobs, decides which user needs an executor, hands the jobs over."""

from typing import Final

VERSION: Final = "0.2.0.dev0"
"""As pyproject.toml has it; code in a private directory is no distribution that importlib.metadata would know."""
