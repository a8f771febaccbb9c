"""Reports as HTML: one self-contained file a run, one of a backfill, and the index over all runs of a job.

``page`` makes the report of a run, ``backfill`` that of a backfill, ``index`` the list of runs; ``sections``,
``outcomes`` and ``figures`` turn what was found into tables and pictures, ``tables`` and ``texts`` those into HTML that
data cannot break. jinja2 is loaded here and nowhere else.
"""
