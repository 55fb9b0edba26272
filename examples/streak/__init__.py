"""Daily streaks: a small real service, measured by otel_perf."""
