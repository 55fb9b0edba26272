"""Operations, spans, series, export and their lifecycle."""
