"""A worker without any web framework: it takes jobs from a queue in an SQLite file."""
