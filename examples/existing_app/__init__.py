"""An app that upstream OpenTelemetry has instrumented for years, and that adds otel_perf."""
