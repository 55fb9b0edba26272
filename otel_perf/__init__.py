"""Performance monitoring for Python services, native to OpenTelemetry."""
