"""What otel_perf costs, beside what its peers cost, in one run: `make bench`.

How it is measured stands in docs/performance.md. Everything runs on loopback and stops by itself.
"""
