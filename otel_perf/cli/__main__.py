"""`python -m otel_perf.cli`."""

from otel_perf.cli import main

main()
