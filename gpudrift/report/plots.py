"""tmp"""
from __future__ import annotations
import os
from collections.abc import Sequence
import numpy as np
from numpy.typing import ArrayLike
from gpudrift.report.clouds import *
from gpudrift.report.style import Picture, drawing, label, save, sheet

def pca_map(reference_n2, current_m2, stem, *, variance_shares=(), labels=("Reference", "Current"), title=None):
    with drawing():
        x, y = finite_plane("reference", reference_n2), finite_plane("current", current_m2)
        frame = frame_of(x, y)
        title = title or f"Where the embeddings lie, and where they moved: {label(labels[0])} against {label(labels[1])}"
        notes = ()
        many=len(x)>=DENSITY_ROWS and len(y)>=OUTLINE_ROWS
        figure, body = sheet(11.5 if many else 8, 5, title, "Shaded: the regions that hold 25, 50, 70 and 90% of the reference's rows. Lines: the regions that hold half (heavy) and 90% (fine) of the rows of either. Large marks: the means.", ("x",))
        if many:
            l,r=body.subfigures(1,2)
        else:l=body
        ax = l.subplots()
        handles = draw_pca_map(ax, x, y, frame, variance_shares=variance_shares, labels=labels)
        l.legend(handles=handles, loc="outside lower left", ncols=1 if many else 2)
        if many:
          ax = r.subplots()
          h = draw_change(ax, x, y, frame, variance_shares=variance_shares)
          r.legend(handles=h, loc="outside lower left", ncols=3)
        return save(figure, stem, title, "alt")

def pc1_histogram(groups, stem, **k):
    with drawing():
        g=[(n, finite_values("g", v)) for n, v in groups]
        lim=robust_limits(*[v for _,v in g])
        figure, body = sheet(9, 4.2, "How rows spread", "sub", ("x",))
        ax = body.subplots()
        body.legend(handles=draw_pc1_histogram(ax,g,lim), loc="outside lower left", ncols=3)
        return save(figure, stem, "t", "alt")
