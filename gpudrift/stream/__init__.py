"""The streaming job: rows taken as they come, a sketch a window, exactly once. ``job.stream`` runs it.

files or record batches -> taking (a part a window, nothing changed yet) -> state (all of it or nothing) -> emission
(scores, verdict) -> checkpoint (one file, replaced by a rename). docs/stream.md is the user's side of it.
"""
