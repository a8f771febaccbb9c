"""Parquet to validated embeddings: ``open_source`` finds the files, ``ParquetSource`` reads windows of them.

uri -> ``discovery`` (files, folder keys) -> ``footers`` (schemas checked, times bounded) -> ``planning`` (rows by
window) -> ``reading`` (vectors to their slots, by ``layouts``) with ``quality`` (bad rows) -> Cloud.
"""

from gpudrift.source.opening import open_source
from gpudrift.source.parquet import Extent, ParquetSource

__all__ = ["Extent", "ParquetSource", "open_source"]
