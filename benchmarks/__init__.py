"""Figures for the docs: not part of the service, nor of its tests."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported: they run in as many processes as cores
