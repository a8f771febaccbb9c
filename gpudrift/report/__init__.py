"""What people see: pictures (``plots``), the terminal (``terminal``) and the words both share (``wording``).

Nothing is imported here: matplotlib loads with ``gpudrift.report.plots`` alone, rich with ``gpudrift.report.terminal``
alone, so a job that draws nothing pays for neither.
"""
