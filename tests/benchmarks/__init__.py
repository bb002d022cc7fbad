"""How long things take, beside what one would do instead. They print tables and assert nothing.

    python -m tests.benchmarks.sweep        a sweep on threads, beside a hand-written loop
    python -m tests.benchmarks.cluster      the same on a cluster of two processes
    python -m tests.benchmarks.in_memory    a small V to scikit-learn's error
    python -m tests.benchmarks.overhead     what a pass over next to nothing costs

Contestants take turns and medians are shown, because the speed of a shared machine drifts.
"""
