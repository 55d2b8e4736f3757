"""The version, in the one place where it stands: pyproject.toml and build.py read it here, and the core is told."""

__version__ = "0.1.0"
