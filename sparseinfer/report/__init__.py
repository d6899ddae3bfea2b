"""A page about a converted model: what was pruned and converted, why, and what it gains.

`sparseinfer.report.report` writes it for a model in memory, `sparseinfer report` for a folder or file.
"""

from sparseinfer.report.content import Content, Latency, Quality
from sparseinfer.report.page import html
from sparseinfer.report.write import report

__all__ = ["Content", "Latency", "Quality", "html", "report"]
