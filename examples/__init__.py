"""Services that use otel_perf as an application would."""
