"""Parquet to validated embeddings: ``open_source`` finds the files, ``ParquetSource`` reads windows of them.

uri -> ``discovery`` (files, folder keys) -> ``footers`` (schemas checked, times bounded) -> ``planning`` (rows by
window) -> ``reading`` (vectors to their slots) or ``scanning`` (batch after batch), both by ``cleaning`` (one batch's
vectors by ``layouts``, bad rows by ``quality``). ``ArrowBatches`` cleans record batches that are in no file.
"""

from gpudrift.source.arrow_batches import ArrowBatches, CleanBatch
from gpudrift.source.opening import open_source
from gpudrift.source.parquet import Extent, ParquetSource
from gpudrift.source.scanning import Scan, ScanBatch

__all__ = ["ArrowBatches", "CleanBatch", "Extent", "ParquetSource", "Scan", "ScanBatch", "open_source"]
