"""Measures the project against its targets: ``python -m benchmarks``, or ``make bench``.

Everything is real: private Redis servers, Celery workers as processes of their own, the built-in engine.  Only the node classes are
made for measuring (`nodes`): they sleep, make pictures whose every bit is known, and tell when they ran.
"""
