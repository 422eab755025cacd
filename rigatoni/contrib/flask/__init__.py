"""Flask: the watcher of an application; see :class:`Rigatoni`."""

from __future__ import annotations

from .extension import Rigatoni as Rigatoni

__all__ = ["Rigatoni"]
