"""The pipeline: the Collector's sources and configuration, and the programs that run it without containers."""
